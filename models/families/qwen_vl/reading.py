"""Images and clips of Qwen-VL: patches, as many as there is room for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.manifest import Patches, Preprocessing
from divprune_edge.models.families.reader import Reader
from divprune_edge.processing.assembly import Assembly
from divprune_edge.processing.clips import load_clip
from divprune_edge.processing.image_input import ONE_SPAN, ImageInput
from divprune_edge.processing.patches import clip_to_patches, grid_inputs, to_patches
from divprune_edge.processing.sources import Video

__all__ = ["OF_PATCHES"]

_VISION_START, _VISION_END = "<|vision_start|>", "<|vision_end|>"
_CAPTION = f"<{{:.1f}} seconds>{_VISION_START}"
"""What Qwen3-VL reads before the tokens of each time."""


def _image(image: Image.Image, facts: Preprocessing, size: tuple[int, int] | None, alone: bool) -> ImageInput:
    """Return the patches of an image, and where its tokens lie in it and in a prompt.

    Raises:
        UserError: the image is too elongated.
    """
    assert facts.patches is not None
    pixels, grid = to_patches(image, facts)
    return replace(_placed(pixels, grid, facts.patches), size=(image.height, image.width), alone=alone)


def _clip(video: Video, facts: Preprocessing, size: tuple[int, int] | None) -> ImageInput:
    """Return the patches of a clip, each of several frames, and where its tokens lie in it and in a prompt.

    Raises:
        UserError: the clip cannot be read, or it is too elongated.
    """
    clips = facts.clips
    assert clips is not None and clips.frame.patches is not None
    clip = load_clip(video, clips)
    pixels, grid, given = clip_to_patches(clip.frames, len(clip.times), facts)
    found = replace(_placed(pixels, grid, clips.frame.patches), size=given, captions=ONE_SPAN)
    assert found.places is not None and found.assembly is not None
    if clips.tokens_per_second is None:
        ends = [*clip.times, *clip.times[-1:] * (-len(clip.times) % clips.depth)]
        first, last = ends[:: clips.depth], ends[clips.depth - 1 :: clips.depth]
        captions = tuple(
            (_CAPTION.format((a + b) / 2), _VISION_END) for a, b in zip(first, last, strict=True)
        )
        return replace(found, captions=captions)
    # In single precision, and cut off, as in transformers.
    step = np.float32(clips.tokens_per_second) * np.float32(clips.depth / clip.rate)
    times = (np.arange(len(pixels)).astype(np.float32) * step).astype(np.int64)
    return replace(found, places=np.stack([times[found.assembly.tile_of], *found.places[1:]]))


def _placed(pixels: npt.NDArray[np.uint8], grid: tuple[int, int], facts: Patches) -> ImageInput:
    """Return grids of patches with where their tokens lie, those of one time at one."""
    down, across = grid[0] // facts.merge, grid[1] // facts.merge
    row, column = np.divmod(np.tile(np.arange(down * across), len(pixels)), across)
    edges = np.stack([row / down, column / across, (row + 1) / down, (column + 1) / across], axis=1)
    count = len(row)
    return ImageInput(
        pixels,
        (0, 0),
        Assembly(
            rows=np.arange(1, count + 1)[:, None],
            weights=np.ones((count, 1), np.float32),
            boxes=edges.astype(np.float32),
            fine=np.zeros(count, np.bool_),
            tile_of=np.repeat(np.arange(len(pixels)), down * across),
        ),
        further=grid_inputs(grid, facts),
        places=np.stack([np.zeros(count, np.int64), row, column]),
        ahead=max(down, across),
    )


OF_PATCHES = Reader(_image, _clip)
