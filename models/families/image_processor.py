"""What the file of an image processor says, as far as all of transformers' processors agree."""

from __future__ import annotations

from typing import Any

from divprune_edge.errors import UserError
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
