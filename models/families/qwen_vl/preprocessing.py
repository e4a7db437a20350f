"""What the image processor of Qwen2.5-VL and Qwen3-VL says, as facts; both have that of Qwen2-VL."""

from __future__ import annotations

import re

from pydantic import ValidationError

from divprune_edge.errors import UserError
from divprune_edge.manifest import MOST_FRAMES, Clips, Patches, Preprocessing
from divprune_edge.models.budget import USUAL_CLIP_TOKENS
from divprune_edge.models.families.image_processor import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    clip_sampling,
    is_on,
    normalisation,
    processor_config,
    resample_filter,
    same_scale,
    valid_clips,
    video_config,
)
from divprune_edge.models.families.qwen_vl.model import QwenSpec
from divprune_edge.models.families.qwen_vl.spec import QwenVisionSpec
from divprune_edge.models.files import CheckpointFiles, Config, count, setting

_CLASS = "Qwen2VLImageProcessor"
# What its class assumes where its file says nothing.
_PATCH, _MERGE, _TEMPORAL = 14, 2, 2
_BOUNDS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_HALF = (0.5, 0.5, 0.5)
_FRAMES = {
    "Qwen2VL": (CLIP_MEAN, CLIP_STD, {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}),
    "Qwen3VL": (_HALF, _HALF, {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}),
}
"""Video processor -> its mean, standard deviation and bounds of pixels."""
_CAPS = {"Qwen2VL": 128_000, "Qwen3VL": 768}


def read_patches(files: CheckpointFiles, spec: QwenVisionSpec) -> Preprocessing:
    """Return the image preprocessing of a checkpoint with this tower.

    Looks in ``preprocessor_config.json``, then under ``image_processor`` of ``processor_config.json``; absent fields
    take the defaults of transformers' processor.

    Raises:
        UserError: no such file, another processor, or patches that are not the tower's.
    """
    config = processor_config(files)
    name = setting(config, "image_processor_type", _CLASS, str)
    if not re.fullmatch(f"{_CLASS}(Fast|Pil)?", name):
        raise UserError(
            f"The image processor is a '{name}', supported is {_CLASS} (also as {_CLASS}Fast and {_CLASS}Pil): use a "
            "checkpoint with it.",
            code="image-processor-unsupported",
        )
    return _patches(config, spec, CLIP_MEAN, CLIP_STD, _BOUNDS)


def read_clips(
    files: CheckpointFiles, spec: QwenSpec, frames: int, max_pixels: int | None, *, kind: str
) -> Clips:
    """Return the facts of clips of at most so many frames.

    Bounds of pixels are those of a frame for Qwen2-VL's processor, and those of a whole clip for Qwen3-VL's. A clip has
    no more visual tokens than is usual, or where ``max_pixels`` is given, than frames of that size have.

    Raises:
        UserError: as :func:`read_patches`, or frames are normalised in another way than images.
    """
    config, vision = video_config(files, kind), spec.vision
    mean, std, bounds = _FRAMES[kind]
    frame = _patches(config, vision, mean, std, bounds)
    same_scale(frame, read_patches(files, vision))
    capped, grids = is_on(config, "cap_pixels_per_frame", default=False), -(-frames // vision.temporal)
    tokens = USUAL_CLIP_TOKENS if max_pixels is None else grids * max(max_pixels // vision.factor**2, 1)
    return valid_clips(
        {
            "frames": frames,
            "frame": frame.model_dump(),
            "sampling": "ends" if kind == "Qwen3VL" else "steps",
            "whole": kind == "Qwen3VL",
            "cap": count(config, "max_video_tokens", _CAPS[kind]) if capped else None,
            "tokens": tokens,
            "tokens_per_second": vision.tokens_per_second,
            **clip_sampling(config, {"fps": 2.0, "min_frames": 4, "max_frames": MOST_FRAMES}),
        }
    )


def _patches(
    config: Config,
    spec: QwenVisionSpec,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    bounds: dict[str, int],
) -> Preprocessing:
    if not is_on(config, "do_resize"):
        raise UserError(
            "The image processor does not resize (do_resize is off), so that images are no whole patches: set "
            "do_resize to true.",
            code="image-processor-unsupported",
        )
    for field, usual, own in (
        ("patch_size", _PATCH, spec.patch),
        ("merge_size", _MERGE, spec.merge),
        ("temporal_patch_size", _TEMPORAL, spec.temporal),
    ):
        said = count(config, field, usual)
        if said != own:
            raise UserError(
                f"The image processor's {field} is {said}, but the vision tower's is {own}: the files are not of one "
                "checkpoint.",
                code="image-processor-size-unfit",
            )
    least, most = _bounds(config, bounds)
    try:
        patches = Patches(
            patch=spec.patch,
            merge=spec.merge,
            temporal=spec.temporal,
            min_pixels=least,
            max_pixels=most,
            places=spec.side,
            window=spec.window,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"The image processor does not make patches for this vision tower: {f'{where}: ' if where else ''}"
            f"{first['msg'].removeprefix('Value error, ')}.",
            code="image-processor-unsupported",
        ) from error
    return Preprocessing(
        resize="area",
        resample=resample_filter(config, BICUBIC),
        **normalisation(config, mean, std),
        patches=patches,
    )


def _bounds(config: Config, usual: dict[str, int]) -> tuple[int, int]:
    """Return the least and most pixels: under their own names, or under those of edges, which they are not."""
    size = setting(config, "size", usual, dict)
    least, most = (
        setting(config, own, size.get(edge), int)
        for own, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    )
    if type(least) is not int or type(most) is not int or least < 1 or most < 1:
        raise UserError(
            f"The image processor's size is {str(dict(size))[:80]}, expected shortest_edge and longest_edge, the least "
            "and most pixels of an image.",
            code="image-processor-unsupported",
        )
    return least, most
