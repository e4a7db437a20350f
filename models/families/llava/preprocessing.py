"""What an image processor's config says, as facts: the runtime acts on them, the graph bakes in the numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.manifest import Preprocessing
from divprune_edge.models.families.image_processor import (
    BICUBIC,
    BILINEAR,
    CLIP_MEAN,
    CLIP_STD,
    is_on,
    normalisation,
    processor_config,
    resample_filter,
)
from divprune_edge.models.files import CheckpointFiles, Config, setting

_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ProcessorKind:
    """What one of transformers' image processors does where its file says nothing.

    ``square`` says that a single number as size means both edges, not the shorter one; ``crop`` is None where it does
    not crop; ``pads`` says that ``do_pad`` makes the image a square first. ``tiles`` says that it cuts an
    image into tiles.
    """

    size: dict[str, int]
    crop: int | None
    resample: int = BICUBIC
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    square: bool = False
    pads: bool = False
    tiles: bool = False


_CLIP = ProcessorKind({"shortest_edge": 224}, 224)
PROCESSORS: dict[str, ProcessorKind] = {
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Bit": _CLIP,
    "Llava": ProcessorKind({"shortest_edge": 224}, 224, pads=True),
    "ViT": ProcessorKind({"height": 224, "width": 224}, None, BILINEAR, _HALF, _HALF, square=True),
    "DeiT": ProcessorKind({"height": 256, "width": 256}, 224, BICUBIC, _HALF, _HALF, square=True),
    "Siglip": ProcessorKind({"height": 224, "width": 224}, None, BICUBIC, _HALF, _HALF),
    "Blip": ProcessorKind({"height": 384, "width": 384}, None, square=True),
}
"""Name of the processor, less ``ImageProcessor`` -> the defaults of transformers' Pillow processor of that name."""
_CLASS = re.compile(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)")


def read_preprocessing(
    files: CheckpointFiles,
    image_size: int,
    kinds: Mapping[str, ProcessorKind] = PROCESSORS,
    config: Config | None = None,
) -> Preprocessing:
    """Return the image preprocessing of a checkpoint whose vision tower takes ``image_size`` pixels a side.

    Looks in ``preprocessor_config.json``, then under ``image_processor`` of ``processor_config.json``; absent fields
    take the defaults of the processor that is named, of the first of ``kinds`` where none is. As in transformers, null
    switches something off. ``config`` is what the processor says where it is another one's, as of a clip's frames.

    Raises:
        UserError: no such file, another processor, or a result that does not fit the vision tower.
    """
    config, usual = processor_config(files) if config is None else config, next(iter(kinds))
    name = (
        setting(config, "image_processor_type", config.get("feature_extractor_type"), str)
        or f"{usual}ImageProcessor"
    )
    found = _CLASS.fullmatch(name)
    kind = kinds.get(found.group(1)) if found else None
    if kind is None:
        raise UserError(
            f"The image processor is a '{name}', supported are {', '.join(kinds)} (as {usual}ImageProcessor, "
            f"{usual}ImageProcessorFast, {usual}FeatureExtractor): use a checkpoint with one of them.",
            code="image-processor-unsupported",
        )
    if config.get("do_pad") and not kind.pads and config.get("pad_size") is not None:
        raise UserError(
            f"The image processor '{name}' pads to {config['pad_size']!r} after it normalises, which is not supported: "
            "set do_pad to false if images have the tower's size without it.",
            code="image-processor-unsupported",
        )
    crop, said = None, config.get("crop_size")
    if said is None and not (kind.tiles and "crop_size" in config):
        said = kind.crop
    # A processor that cuts tiles cuts them of the crop's size, also where it does not crop; of the size where that is
    # null.
    if is_on(config, "do_center_crop", default=kind.crop is not None) or (kind.tiles and said is not None):
        crop = _height_width(said)
    facts = Preprocessing(
        **_resize(config, kind),
        resample=resample_filter(config, kind.resample),
        crop_height=crop[0] if crop else None,
        crop_width=crop[1] if crop else None,
        pad_to_square=kind.pads and is_on(config, "do_pad", default=False),
        **normalisation(config, kind.mean, kind.std),
    )
    _check_size(facts, image_size, tiled=kind.tiles)
    return facts


def _resize(config: Config, kind: ProcessorKind) -> dict[str, Any]:
    if not is_on(config, "do_resize"):
        return {"resize": "none"}
    size: Any = kind.size if config.get("size") is None else config["size"]
    if kind is _CLIP and config.get("use_square_size"):
        size = {"height": 224, "width": 224}
    if _is_edge(size):
        size = {"height": size, "width": size} if kind.square else {"shortest_edge": size}
    elif isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, dict) and all(_is_edge(edge) for edge in size.values()):
        if set(size) == {"shortest_edge"}:
            return {"resize": "shortest_edge", **size}
        if set(size) == {"shortest_edge", "longest_edge"}:
            return {"resize": "shortest_edge", **size}
        if set(size) == {"height", "width"}:
            return {"resize": "exact", "resize_height": size["height"], "resize_width": size["width"]}
    raise UserError(
        f"The image processor's size is {size!r}, supported are shortest_edge, with longest_edge or without, or height "
        "and width, or one number.",
        code="image-processor-unsupported",
    )


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, list) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if _is_edge(size):
        return size, size
    if isinstance(size, dict) and set(size) == {"height", "width"} and all(map(_is_edge, size.values())):
        return size["height"], size["width"]
    raise UserError(
        f"The image processor's crop_size is {size!r}, expected a number or height and width.",
        code="image-processor-unsupported",
    )


def _is_edge(value: Any) -> bool:
    """Whether this is a number of pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 16


def _check_size(facts: Preprocessing, image_size: int, *, tiled: bool) -> None:
    sides: tuple[int | None, int | None] = (facts.crop_height, facts.crop_width)
    if sides == (None, None) and facts.resize == "exact":
        sides = (facts.resize_height, facts.resize_width)
    if sides == (None, None) and (facts.pad_to_square or tiled) and facts.resize == "shortest_edge":
        edge = min(facts.shortest_edge or image_size, facts.longest_edge or facts.shortest_edge or image_size)
        sides = (edge, edge)
    if sides != (image_size, image_size):
        raise UserError(
            f"The image processor gives images of {sides[0] or 'varying'} x {sides[1] or 'varying'} pixels, "
            f"but the vision tower takes {image_size} x {image_size}.",
            code="image-processor-size-unfit",
        )
