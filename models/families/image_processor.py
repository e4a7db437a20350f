"""What the file of an image processor says, as far as all of transformers' processors agree."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from divprune_edge.errors import UserError
from divprune_edge.manifest import Clips, Preprocessing
from divprune_edge.models.files import CheckpointFiles, Config, setting

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BILINEAR, BICUBIC = 2, 3


def processor_config(files: CheckpointFiles) -> Config:
    """Return what the checkpoint says of its image processor.

    Raises:
        UserError: nothing.
    """
    config = files.json("preprocessor_config.json")
    if config is None:
        nested = (files.json("processor_config.json") or {}).get("image_processor")
        config = nested if isinstance(nested, dict) else None
    if config is None:
        raise UserError(
            f"'{files.folder}' has no preprocessor_config.json (nor an image_processor in "
            "processor_config.json), which says how images are resized: copy it from the original checkpoint.",
            code="image-processor-missing",
        )
    return config


def video_config(files: CheckpointFiles, kind: str) -> Config:
    """Return what the checkpoint says of its video processor, which before it had a file of its own is the images'.

    Raises:
        UserError: nothing, or it is not transformers' processor of that kind.
    """
    nested = (files.json("processor_config.json") or {}).get("video_processor")
    own = nested if isinstance(nested, dict) else files.json("video_preprocessor_config.json")
    config = processor_config(files) if own is None else own
    name = setting(config, "video_processor_type", f"{kind}VideoProcessor", str)
    if name != f"{kind}VideoProcessor":
        raise UserError(
            f"The video processor is a '{name}', supported is {kind}VideoProcessor: export without --frames, for "
            "images alone.",
            code="video-processor-unsupported",
        )
    return config


def clip_sampling(config: Config, usual: dict[str, float]) -> dict[str, Any]:
    """Return the fields of the facts that say how many frames of a clip are looked at, where nothing does as usual."""
    fields = {"fps": "fps", "count": "num_frames", "min_frames": "min_frames", "max_frames": "max_frames"}
    said = {field: setting(config, name, None, float) for field, name in fields.items()}
    found = {field: value for field, value in said.items() if value is not None}
    if {"fps", "count"} & found.keys():
        usual = {field: value for field, value in usual.items() if field not in ("fps", "count")}
    return {**usual, **found}


def same_scale(frame: Preprocessing, image: Preprocessing) -> None:
    """Check that frames are scaled and normalised as images are: the encoder's graph does it for both.

    Raises:
        UserError: they are not.
    """
    for field in ("rescale_factor", "mean", "std"):
        if getattr(frame, field) != getattr(image, field):
            raise UserError(
                f"The video processor's {field} is {getattr(frame, field)}, but the image processor's "
                f"{getattr(image, field)}: export without --frames, for images alone.",
                code="video-processor-unsupported",
            )


def valid_clips(facts: dict[str, Any]) -> Clips:
    """Return the facts of clips.

    Raises:
        UserError: they do not fit each other.
    """
    try:
        return Clips.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"Clips cannot be looked at as the video processor says: {f'{where}: ' if where else ''}"
            f"{first['msg'].removeprefix('Value error, ')}; export without --frames, for images alone, or with another "
            "number.",
            code="video-processor-unsupported",
        ) from error


def is_on(config: Config, name: str, *, default: bool = True) -> bool:
    """Whether a step is done; as in transformers, null switches it off."""
    return bool(config.get(name, default))


def resample_filter(config: Config, default: int) -> int:
    """Return the number of Pillow's filter for resizing.

    Raises:
        UserError: Pillow has no such filter.
    """
    value = int(setting(config, "resample", default, int))
    if not 0 <= value <= 5:
        raise UserError(
            f"The image processor's resample is {value}, expected one of Pillow's filters, 0 to 5.",
            code="image-processor-unsupported",
        )
    return value


def normalisation(
    config: Config, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> dict[str, Any]:
    """Return the fields ``rescale_factor``, ``mean`` and ``std`` of the facts; those given are the processor's own.

    Raises:
        UserError: other than three numbers, or one for all channels.
    """
    rescaled, normalised = is_on(config, "do_rescale"), is_on(config, "do_normalize")
    return {
        "rescale_factor": setting(config, "rescale_factor", 1 / 255, float) if rescaled else 1.0,
        "mean": _three(config, "image_mean", mean) if normalised else (0.0, 0.0, 0.0),
        "std": _three(config, "image_std", std) if normalised else (1.0, 1.0, 1.0),
    }


def _three(config: Config, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return a number per channel; a single one is for all three."""
    values = config.get(name)
    if values is None:
        return default
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = [values] * 3
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != 3 or max(map(abs, values)) > 1e6:
        raise UserError(
            f"The image processor's {name} is {values!r}, expected three numbers, or one for all.",
            code="image-processor-unsupported",
        )
    return (float(values[0]), float(values[1]), float(values[2]))
