"""An image to the patches of an encoder that takes images of any size, bit for bit as transformers'
``Qwen2VLImageProcessorPil`` makes them, and what such an encoder is told of their grid. The frames of a clip are cut
likewise, several together.

Only what happens to 8-bit pixels is done here; rescale, mean and std are the first nodes of the vision graph. Patches
come in blocks, those of one visual token together, in rows within it; so do the blocks within the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.errors import UserError
from divprune_edge.manifest import Clips, Patches, Preprocessing
from divprune_edge.processing.preprocess import check_pixels

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

PIXELS = "pixels"
AXES, PLACE_ROWS, PLACE_WEIGHTS = "axes", "place_rows", "place_weights"
WINDOWS, WINDOW_OF = "windows", "window_of"
"""What a vision graph's inputs are called; :func:`grid_inputs` says what they are."""
PATCHES, ROWS = "patches", "rows"
"""What the dimensions are called that follow from a grid, beside :data:`WINDOWS`: n, and the visual tokens."""

MOST_ELONGATED = 200
"""Times that an image's longer side may be its shorter one."""


def fitted_size(height: int, width: int, facts: Patches, frames: int | None = None) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to: the nearest whole visual tokens within the bounds.

    With ``frames`` the bounds are those of so many frames together, and what is smaller than a visual token is enlarged
    first. In floating point, and rounded half to even, as in transformers (``smart_resize``). Where there are
    ``sizes``, it is the nearest of these: by area, and twice as much by aspect ratio, both as logarithms.

    Raises:
        UserError: the image is too elongated.
    """
    times = rounded = 1
    if frames is not None:
        times = max(frames, facts.temporal)
        rounded = round(times / facts.temporal) * facts.temporal
        if min(height, width) < facts.factor:
            scale = max(facts.factor / height, facts.factor / width)
            height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MOST_ELONGATED:
        raise UserError(
            f"The image of {width} x {height} pixels is too elongated: one side may be at most {MOST_ELONGATED} times "
            "the other; crop it.",
            code="image-too-elongated",
        )
    if facts.sizes:
        return min(facts.sizes, key=lambda size: _distance(height / size[0], width / size[1]))
    factor, sides = facts.factor, (height, width)
    down, across = (round(side / factor) * factor for side in sides)
    if rounded * down * across > facts.max_pixels:
        shrink = math.sqrt(times * height * width / facts.max_pixels)
        down, across = (max(factor, math.floor(side / shrink / factor) * factor) for side in sides)
    elif rounded * down * across < facts.min_pixels:
        grow = math.sqrt(facts.min_pixels / (times * height * width))
        down, across = (math.ceil(side * grow / factor) * factor for side in sides)
    return down, across


def _distance(down: float, across: float) -> float:
    """Return how far off a size is that an image is so many times as high and as wide as."""
    return abs(math.log(down * across)) + 2 * abs(math.log(down / across))


def usual_sizes(facts: Patches, frame: int | None = None) -> tuple[tuple[int, int], ...]:
    """Return sizes for images of most kinds: aspect ratios from 1:2 to 2:1 by steps of √2, of all pixels and a quarter.

    So an image between these ratios is stretched by no more than the fourth root of 2, and whole visual tokens. With
    ``frame`` there are those of so many pixels, too, for the frames of clips.
    """
    found: dict[tuple[int, int], None] = {}
    most = facts.max_pixels // facts.factor**2
    areas = [most, most // 4]
    if frame is not None:
        # Sizes are rounded down, and the least pixels hold for them, too.
        areas.append(min(max(frame, facts.min_pixels * 5 // 4) // facts.factor**2, most))
    for tokens in (max(1, area) for area in sorted(set(areas), reverse=True)):
        square = math.isqrt(tokens)
        shorter = (max(1, round(math.sqrt(tokens / ratio))) for ratio in (math.sqrt(2), 2))
        grids = [(square, square), *((short, tokens // short) for short in shorter)]
        if tokens >= most or all(
            down * across * facts.factor**2 >= facts.min_pixels for down, across in grids
        ):
            sizes = [(down * facts.factor, across * facts.factor) for down, across in grids]
            found |= {either: None for size in sizes for either in (size, size[::-1])}
    return tuple(found)


def dimensions(facts: Patches) -> list[dict[str, int]]:
    """Return what an encoder's dimensions are for each of the sizes, by their names; the least first, those alike once.

    Where there are no sizes, return the least and the most that each may be.
    """
    if facts.sizes:
        grids = [(height // facts.factor, width // facts.factor) for height, width in facts.sizes]
        each = {tuple(_dimensions(facts, *grid).items()) for grid in grids}
        return [dict(one) for one in sorted(each, key=lambda one: [size for _, size in one])]
    most = most_tokens(facts)
    thin = math.isqrt(MOST_ELONGATED * most) + 1
    longest = [min(most // i, max(MOST_ELONGATED * (i + 1), thin)) for i in range(1, math.isqrt(most) + 1)]
    every = [_dimensions(facts, i, across) for i, across in enumerate(longest, start=1)]
    largest = {name: max(one[name] for one in every) for name in every[0]}
    return [_dimensions(facts, 1, 1), {**largest, PATCHES: most * facts.merge**2, ROWS: most}]


def most_dimensions(facts: Patches | None) -> dict[str, int]:
    """Return the most that each of these may be; none for an encoder whose images are not of any size."""
    each = dimensions(facts) if facts is not None else [{}]
    return {name: max(one[name] for one in each) for name in each[0]}


def _dimensions(facts: Patches, down: int, across: int) -> dict[str, int]:
    """Return the dimensions for a grid of visual tokens."""
    found = {PATCHES: down * across * facts.merge**2, ROWS: down * across}
    if facts.window is not None:
        found[WINDOWS] = -(-down // facts.window) * -(-across // facts.window)
    return found


def held_dimensions(preprocessing: Preprocessing) -> dict[str, int]:
    """Return :func:`most_dimensions` of all grids of an image or a clip together, one behind the other."""
    found = most_dimensions(preprocessing.patches)
    if preprocessing.patches is not None and preprocessing.clips is not None:
        found[ROWS] = max(found[ROWS], most_of_clip(preprocessing)[0])
    return found


def most_tokens(facts: Patches) -> int:
    """Return the most visual tokens that any image may become: more than fit the most pixels where these are few.

    Of x by y visual tokens before rounding, an elongated image keeps at least one down, and one that grows to the least
    pixels is rounded up; so it is the largest of ::

        most                                             x y = most, both rounded down
        sqrt(ratio · most), where that is more           x < 1 is kept as 1
        max over i of i · ceil(least / max(i - 1, x))    x y = least, both rounded up, x at least sqrt(least / ratio)
    """
    if facts.sizes:
        return max(map(math.prod, facts.sizes)) // facts.factor**2
    least, most = facts.min_pixels / facts.factor**2, facts.max_pixels / facts.factor**2
    kept = math.sqrt(MOST_ELONGATED * most) if most < MOST_ELONGATED else most
    thinnest = math.sqrt(least / MOST_ELONGATED)
    grown = max(
        i * math.ceil(least / max(i - 1, thinnest)) for i in range(1, math.ceil(math.sqrt(least)) + 1)
    )
    return max(math.floor(kept), grown)


def to_patches(image: Image.Image, facts: Preprocessing) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """Return an RGB image as ``pixels`` uint8 [1, n, 3 * temporal * patch²], and its grid: patches down and across.

    Raises:
        UserError: the image is too elongated.
    """
    assert facts.patches is not None
    height, width = fitted_size(image.height, image.width, facts.patches)
    check_pixels(image, (height, width), "resized")
    frames = [_resized(image, (height, width), facts)] * facts.patches.temporal
    return _cut(frames, facts.patches)[None], (height // facts.patches.patch, width // facts.patches.patch)


def clip_to_patches(
    frames: Iterator[Image.Image], count: int, preprocessing: Preprocessing
) -> tuple[npt.NDArray[np.uint8], tuple[int, int], tuple[int, int]]:
    """Return ``count`` RGB frames as uint8 [grids, n, 3 * temporal * patch²], the grid, and the size that they had.

    Several frames make a grid; the last one is repeated where they do not come out even.

    Raises:
        UserError: the frames are too elongated.
    """
    clips = preprocessing.clips
    assert clips is not None
    facts = clip_bounds(preprocessing, count)
    pending: list[npt.NDArray[np.uint8]] = []
    grids: list[npt.NDArray[np.uint8]] = []
    size = given = (0, 0)
    for frame in frames:
        if not grids and not pending:
            given = frame.height, frame.width
            size = fitted_size(*given, facts, count if clips.whole else None)
            check_pixels(frame, size, "resized")
        pending.append(_resized(frame, size, clips.frame))
        if len(pending) == facts.temporal:
            grids.append(_cut(pending, facts))
            pending.clear()
    if pending:
        grids.append(_cut([*pending, *pending[-1:] * (facts.temporal - len(pending))], facts))
    return np.stack(grids), (size[0] // facts.patch, size[1] // facts.patch), given


def clip_bounds(preprocessing: Preprocessing, frames: int) -> Patches:
    """Return how each of so many frames becomes patches; with ``whole``, the bounds are of all of them.

    Where images have sizes, frames have those that are within the bounds; where none is, the smallest.
    """
    clips = preprocessing.clips
    assert clips is not None and clips.frame.patches is not None and preprocessing.patches is not None
    sizes, within = preprocessing.patches.sizes, frame_pixels(clips, frames)
    if sizes:
        sizes = tuple(one for one in sizes if math.prod(one) <= within) or (min(sizes, key=math.prod),)
    return clips.frame.patches.model_copy(update={"max_pixels": _most_pixels(clips, frames), "sizes": sizes})


def frame_pixels(clips: Clips, frames: int) -> int:
    """Return the most pixels of each of so many frames, those counted in that fill up the last grid."""
    most = _most_pixels(clips, frames)
    return most // (-(-frames // clips.depth) * clips.depth) if clips.whole else most


def _most_pixels(clips: Clips, frames: int) -> int:
    facts = clips.frame.patches
    assert facts is not None and clips.tokens is not None
    token, grids, most = facts.factor**2, -(-frames // facts.temporal), facts.max_pixels
    if clips.cap is not None and clips.whole:
        most = max(min(clips.cap * token, most // frames), int(facts.min_pixels * 1.05)) * frames
    elif clips.cap is not None:
        share = int(clips.cap * token * 0.9) * facts.temporal // frames
        most = max(min(most, share), int(facts.min_pixels * 1.05))
    room = clips.tokens * token
    return min(most, room * facts.temporal if clips.whole else max(room // grids, token))


def most_of_clip(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the most visual tokens that a clip may become, and one grid of it."""
    clips = preprocessing.clips
    assert clips is not None
    most = most_of_grid = 0
    for frames in range(1, clips.frames + 1):
        facts = clip_bounds(preprocessing, frames)
        if clips.whole:
            times = max(frames, facts.temporal)
            each = min(round(times / facts.temporal) * facts.temporal, times)
            bounds = {
                "max_pixels": max(facts.max_pixels // each, 1),
                "min_pixels": -(-facts.min_pixels // each),
            }
            facts = facts.model_copy(update=bounds)
        of_grid = most_tokens(facts)
        most_of_grid = max(most_of_grid, of_grid)
        most = max(most, -(-frames // facts.temporal) * of_grid)
    return most, most_of_grid


def _resized(image: Image.Image, size: tuple[int, int], facts: Preprocessing) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize(size[::-1], resample=Image.Resampling(facts.resample)))


def _cut(frames: Sequence[npt.NDArray[np.uint8]], facts: Patches) -> npt.NDArray[np.uint8]:
    """Cut frames of one patch's depth, [H, W, 3] each, into patches [n, 3 * temporal * patch²]."""
    patch, merge, (height, width, _) = facts.patch, facts.merge, frames[0].shape
    factor = facts.factor
    cut = np.stack(frames).reshape(-1, height // factor, merge, patch, width // factor, merge, patch, 3)
    cut = cut.transpose(1, 4, 2, 5, 7, 0, 3, 6)
    return cut.reshape(height * width // patch**2, -1)


def grid_inputs(grid: tuple[int, int], facts: Patches) -> dict[str, npt.NDArray[Any]]:
    """Return what an encoder is told of a grid of n patches, by the names of its inputs.

    Returns:
        ``axes`` int64 [n, 2]: row and column of each patch, for its rotary embedding.

        With ``places``, ``place_rows`` int64 [n, 4] and ``place_weights`` float32 [n, 4]: the places whose learned
        positions a patch's is interpolated from, corners on corners.

        With ``window``, ``windows`` int64 [windows, most]: the patches of each, and n where it has no more; and
        ``window_of`` int64 [n]: where each patch is in the windows, these taken as one row.
    """
    axes = _axes(grid, facts.merge)
    found: dict[str, npt.NDArray[Any]] = {AXES: axes}
    if facts.places is not None:
        found[PLACE_ROWS], found[PLACE_WEIGHTS] = _places(axes, grid, facts.places)
    if facts.window is not None:
        found[WINDOWS], found[WINDOW_OF] = _windows(grid, facts.merge, facts.window)
    return found


def _axes(grid: tuple[int, int], merge: int) -> Ints:
    rows, columns = grid
    blocks = np.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    return np.stack(np.divmod(blocks.transpose(0, 2, 1, 3).reshape(-1), columns), axis=-1)


def _places(axes: Ints, grid: tuple[int, int], side: int) -> tuple[Ints, Floats]:
    """Interpolate in float32, as transformers does."""
    reach = np.array([max(size - 1, 1) for size in grid], np.float32)
    at = axes.astype(np.float32) * np.float32(side - 1) / reach
    below = np.floor(at)
    places = np.minimum(below.astype(np.int64)[..., None] + np.arange(2), side - 1)
    share = at - below
    weights = np.stack([1 - share, 1 - (1 - share)], axis=-1)
    rows = places[:, 0, :, None] * side + places[:, 1, None, :]
    together = weights[:, 0, :, None] * weights[:, 1, None, :]
    return rows.reshape(-1, 4), together.reshape(-1, 4).astype(np.float32)


def _windows(grid: tuple[int, int], merge: int, window: int) -> tuple[Ints, Ints]:
    rows, columns = (size // merge for size in grid)
    n, each = grid[0] * grid[1], merge**2
    tokens = np.full((-(-rows // window) * window, -(-columns // window) * window), -1)
    tokens[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    cut = tokens.reshape(-1, window, tokens.shape[1] // window, window).transpose(0, 2, 1, 3)
    blocks = cut.reshape(-1, window**2, 1)
    patches = np.where(blocks < 0, n, blocks * each + np.arange(each)).reshape(len(blocks), -1)
    flat = patches.reshape(-1)
    real = np.flatnonzero(flat < n)
    window_of = np.empty(n, np.int64)
    window_of[flat[real]] = real
    return patches, window_of
