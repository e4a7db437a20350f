"""What an image processor's config says, as facts: the runtime acts on them, the graph bakes in the numbers."""

from __future__ import annotations

from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.manifest import Preprocessing
from divprune_edge.models.files import CheckpointFiles, Config, setting

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
_SUPPORTED = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")
_PADDING = ("LlavaImageProcessor", "LlavaImageProcessorFast", "LlavaImageProcessorPil")


def read_preprocessing(files: CheckpointFiles, image_size: int) -> Preprocessing:
    """Return the image preprocessing of a checkpoint whose vision tower takes ``image_size`` pixels a side.

    Looks in ``preprocessor_config.json``, then under ``image_processor`` of ``processor_config.json``; absent
    fields take ``CLIPImageProcessor``'s defaults.

    Raises:
        UserError: no such file, another processor, or a result that does not fit the vision tower.
    """
    config = _find(files)
    kind = setting(config, "image_processor_type", "CLIPImageProcessor", str)
    if kind not in _SUPPORTED + _PADDING:
        raise UserError(
            f"The image processor is a '{kind}', supported are {', '.join(_SUPPORTED + _PADDING)}.",
            code="image-processor-unsupported",
        )
    crop = _height_width(config.get("crop_size", 224)) if config.get("do_center_crop", True) else None
    rescaled = bool(config.get("do_rescale", True))
    normalised = bool(config.get("do_normalize", True))
    facts = Preprocessing(
        **_resize(config),
        resample=int(setting(config, "resample", BICUBIC, int)),
        crop_height=crop[0] if crop else None,
        crop_width=crop[1] if crop else None,
        pad_to_square=kind in _PADDING and bool(config.get("do_pad", False)),
        rescale_factor=setting(config, "rescale_factor", 1 / 255, float) if rescaled else 1.0,
        mean=_three(config, "image_mean", CLIP_MEAN) if normalised else (0.0, 0.0, 0.0),
        std=_three(config, "image_std", CLIP_STD) if normalised else (1.0, 1.0, 1.0),
    )
    _check_size(facts, image_size)
    return facts


def _find(files: CheckpointFiles) -> Config:
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


def _resize(config: Config) -> dict[str, Any]:
    if not config.get("do_resize", True):
        return {"resize": "none"}
    size = config.get("size", {"shortest_edge": 224})
    if isinstance(size, int):
        return {"resize": "shortest_edge", "shortest_edge": size}
    if isinstance(size, dict) and "shortest_edge" in size and "longest_edge" not in size:
        return {"resize": "shortest_edge", "shortest_edge": int(size["shortest_edge"])}
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return {"resize": "exact", "resize_height": int(size["height"]), "resize_width": int(size["width"])}
    raise UserError(
        f"The image processor's size is {size!r}, supported are shortest_edge or height and width.",
        code="image-processor-unsupported",
    )


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    raise UserError(
        f"The image processor's crop_size is {size!r}, expected a number or height and width.",
        code="image-processor-unsupported",
    )


def _three(config: Config, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    values = config.get(name)
    if values is None:
        return default
    if not isinstance(values, list) or len(values) != 3:
        raise UserError(
            f"The image processor's {name} is {values!r}, expected three numbers.",
            code="image-processor-unsupported",
        )
    return (float(values[0]), float(values[1]), float(values[2]))


def _check_size(facts: Preprocessing, image_size: int) -> None:
    sides: tuple[int | None, int | None] = (facts.crop_height, facts.crop_width)
    if sides == (None, None) and facts.resize == "exact":
        sides = (facts.resize_height, facts.resize_width)
    if sides == (None, None) and facts.pad_to_square and facts.resize == "shortest_edge":
        sides = (facts.shortest_edge, facts.shortest_edge)
    if sides != (image_size, image_size):
        raise UserError(
            f"The image processor gives images of {sides[0] or 'varying'} x {sides[1] or 'varying'} pixels, "
            f"but the vision tower takes {image_size} x {image_size}.",
            code="image-processor-size-unfit",
        )
