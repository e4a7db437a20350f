"""An image to the tiles of "anyres" checkpoints (LLaVA-NeXT, LLaVA-OneVision), bit for bit as transformers' processors
``LlavaNextImageProcessorPil`` and ``LlavaOnevisionImageProcessorPil`` make them.

The first tile, the base, is the whole image squeezed to a square. The others are cut from the image at a higher
resolution: it is fitted into the best of a checkpoint's grids, black around it. Each tile then takes the checkpoint's
own resize and crop, which mostly leave it as it is. ``processing.assembly`` puts the tiles' features together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.manifest import Preprocessing, Tiling
from divprune_edge.processing.preprocess import encoder_pixels


def best_grid(height: int, width: int, grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the (height, width) of the grid that keeps most of an image: the smallest of several, then the first.

    In floating point, as in transformers (``select_best_resolution``), where an image that fills a grid may be counted
    one pixel short. Of an image that no grid keeps a pixel of, all keep the same.
    """

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[1] / width, grid[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, -grid[0] * grid[1]

    return max(grids, key=merit)


def fitted(height: int, width: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) that an image has where it fills a grid along one edge."""
    down, across = grid[0] / height, grid[1] / width
    if across < down:
        return min(math.ceil(height * across), grid[0]), grid[1]
    return grid[0], min(math.ceil(width * down), grid[1])


def to_tiles(
    image: Image.Image, facts: Preprocessing, height: int, width: int, *, alone: bool = True
) -> npt.NDArray[np.uint8]:
    """Return an RGB image as a vision encoder of that size takes it, uint8 [tiles, H, W, 3], the base first.

    One tile where the checkpoint does not tile, or not unless an image is ``alone`` in its prompt.

    Raises:
        UserError: the image is too elongated to be padded, or its tiles do not become of the encoder's size.
    """
    tiling = facts.tiling
    if tiling is None:
        return encoder_pixels(image, facts, height, width)
    if not alone and tiling.several == "base":
        # This base is the one that is not squeezed.
        return encoder_pixels(image, facts.model_copy(update={"pad_to_square": True}), height, width)
    grid = best_grid(image.height, image.width, tiling.grids)
    resample = Image.Resampling(facts.resample)
    cut = _tiles(_fit(image, grid, resample), tiling.tile)
    tiles = [image.resize(_base_size(facts, tiling.tile), resample=resample), *cut]
    return np.concatenate([encoder_pixels(tile, facts, height, width) for tile in tiles])


def most_tiles(tiling: Tiling) -> int:
    """Return the number of tiles of the largest grid, with the base."""
    return 1 + max(height * width for height, width in tiling.grids) // tiling.tile**2


def _base_size(facts: Preprocessing, tile: int) -> tuple[int, int]:
    """Return the (width, height) of the base before it is treated like the other tiles; the shorter edge is both."""
    if facts.resize == "exact" and facts.resize_height is not None and facts.resize_width is not None:
        return facts.resize_width, facts.resize_height
    edge = facts.shortest_edge or tile
    return edge, edge


def _fit(image: Image.Image, grid: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Put the image in the middle of a black grid, as large as it goes."""
    height, width = fitted(image.height, image.width, grid)
    canvas = Image.new("RGB", (grid[1], grid[0]))
    canvas.paste(
        image.resize((width, height), resample=resample), ((grid[1] - width) // 2, (grid[0] - height) // 2)
    )
    return canvas


def _tiles(canvas: Image.Image, tile: int) -> list[Image.Image]:
    """Cut a canvas into tiles, row by row."""
    return [
        canvas.crop((left, top, left + tile, top + tile))
        for top in range(0, canvas.height, tile)
        for left in range(0, canvas.width, tile)
    ]
