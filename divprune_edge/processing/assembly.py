"""Which features of an image's tiles make the rows that the language model reads, as in transformers' models.

That is ``pack_image_features`` there, and ``apply_pooling`` for the frames of a clip.

The base's rows come first. Then those of the other tiles, each row of features over all tiles abreast, less the padding
around the image, with the learned newline after it::

    base              fine, two tiles abreast
    1 2 3             t1 t1 t1 t2 t2 t2 newline
    4 5 6             t1 t1 t1 t2 t2 t2 newline
    7 8 9             …

The features themselves stay where they are. An image's sizes are compared as integers here; transformers' quotients,
rounded to seven digits, agree with that below a million pixels a side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import Tiling
from divprune_edge.processing.anyres import best_grid, fitted

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Assembly:
    """The m rows of an image, from the features of its tiles of side * side features each.

    ``rows`` int64 [m, r] and ``weights`` float32 [m, r]: a row is the weighted sum of these features, where 0 is the
    newline and 1 + t * side² + i is feature i of tile t. r is 4 where features are interpolated, else 1.

    ``boxes`` float32 [m, 4]: top, left, bottom and right of what a row sees, in fractions of the image; empty where it
    sees padding. A newline has the box of the row before it.

    ``fine`` bool [m]: the row is one of the tiles', not of the base. ``tile_of`` int64 [m]: the tile, or the frame of a
    clip, that most of the row comes from; a newline's is that of the row before it.
    """

    rows: _Ints
    weights: _Floats
    boxes: _Floats
    fine: npt.NDArray[np.bool_]
    tile_of: _Ints


def assembly(height: int, width: int, tiling: Tiling, *, alone: bool = True) -> Assembly:
    """Return how the rows are made of an image that had this size before it was resized.

    Raises:
        UserError: the image is too elongated.
    """
    side = tiling.side
    if not alone and tiling.several == "base":
        return _narrow(_ended(_padded_base(height, width, side)))
    whole = _axis(0, side, side, 0, side)
    return _narrow(_joined([_raster(whole, whole, side), _fine(height, width, tiling)]))


def clip_assembly(frames: int, side: int) -> Assembly:
    """Return how the rows of a video's frames are made: a quarter as many as features, and one newline at the end.

    Raises:
        UserError: there are no frames.
    """
    if frames < 1:
        raise UserError(f"A clip has one frame or more, not {frames}.", code="clip-empty")
    pooled = _axis(0, side, -(-side // 2), 0, side)
    return _narrow(_ended(_joined([_raster(pooled, pooled, side, first=frame) for frame in range(frames)])))


def most_rows(tiling: Tiling) -> int:
    """Return the largest number of rows that an image has."""
    return tiling.side**2 + max(_fine_rows(tiling))


def rows_of(tiling: Tiling, per: str) -> int:
    """Return the largest number of rows of an image, or of a ``tile``, each line of which a newline may end."""
    return tiling.side * (tiling.side + 1) if per == "tile" else most_rows(tiling)


def rows_of_clip(tiling: Tiling, frames: int) -> tuple[int, int]:
    """Return the number of rows of a clip, and the largest of one of its frames: the newline is the last one's."""
    of_frame = (-(-tiling.side // 2)) ** 2
    return frames * of_frame + 1, of_frame + 1


def sources_of(tiling: Tiling) -> int:
    """Return how many tokens of tiles a row is made of, at most: four where they are interpolated."""
    return 1 if tiling.max_tiles is None else 4


def _padded_base(height: int, width: int, side: int) -> Assembly:
    """Return the base's rows of an image that was put in the middle of a square."""
    square = max(height, width)
    down, across = (
        _axis(0, side, side, (square - edge) // 2 / square * side, edge / square * side)
        for edge in (height, width)
    )
    return _raster(down, across, side)


def _fine(height: int, width: int, tiling: Tiling) -> Assembly:
    """Return the rows of all tiles but the base, with their newlines."""
    side, grid = tiling.side, best_grid(height, width, tiling.grids)
    all_rows, all_columns = (edge // tiling.tile * side for edge in grid)
    top, left = _padding(height, width, all_rows, all_columns)
    rows, columns = all_rows - 2 * top, all_columns - 2 * left
    size = _shrunk(rows, columns, tiling)
    if size is None:
        raise UserError(
            f"The image of {width} x {height} pixels is too elongated: its features would be shrunk to none; crop it.",
            code="image-too-elongated",
        )
    per_pixel = side / tiling.tile
    down, across = (
        _axis(cut, kept, count, (room - filled) // 2 * per_pixel, filled * per_pixel)
        for cut, kept, count, room, filled in zip(
            (top, left), (rows, columns), size, grid, fitted(height, width, grid), strict=True
        )
    )
    fine = _raster(down, across.ended(left), side, first=1, abreast=all_columns // side, fine=True)
    newlines = slice(size[1], None, size[1] + 1)
    fine.rows[newlines], fine.weights[newlines] = 0, (1, 0, 0, 0)
    return fine


def _padding(height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
    """Return how many (rows, columns) of features are cut on either side, where an image does not fill them."""
    if width * rows > height * columns:
        return (rows - height * columns // width) // 2, 0
    return 0, (columns - width * rows // height) // 2


def _shrunk(rows: int, columns: int, tiling: Tiling) -> tuple[int, int] | None:
    """Return the (rows, columns) that features are shrunk to; None where an edge would come to nothing."""
    if tiling.max_tiles is None:
        return rows, columns
    ratio = math.sqrt(rows * columns / (tiling.max_tiles * tiling.side**2))
    if ratio <= 1.1:
        return rows, columns
    size = int(rows // ratio), int(columns // ratio)
    return size if min(size) else None


def _fine_rows(tiling: Tiling) -> Iterator[int]:
    """Yield every number of rows that the tiles without the base have, some of them repeatedly.

    An image that fills a grid's height is put into it unless a smaller grid, or one of as many tiles before it, would
    hold it at that size. So it is wider than the widest of those, and any width from there to the grid's own occurs; an
    image at its own size shows it, and no other scale does better. The same holds for the other edge.
    """
    grids = list(dict.fromkeys((h // tiling.tile, w // tiling.tile) for h, w in tiling.grids))
    for index, grid in enumerate(grids):
        area = grid[0] * grid[1]
        rivals = [g for i, g in enumerate(grids) if (g[0] * g[1], i) < (area, index)]
        for edge in (0, 1):
            full, other = grid[edge] * tiling.side, grid[1 - edge] * tiling.side
            held = max((g[1 - edge] for g in rivals if g[edge] >= grid[edge]), default=0) * tiling.side
            for filled in range(held, other + 1) if held < other else ():
                kept = other - (other - filled) // 2 * 2
                size = _shrunk(*((full, kept) if edge == 0 else (kept, full)), tiling)
                if size is not None:
                    yield size[0] * (size[1] + 1)


@dataclass(frozen=True, eq=False)
class _Axis:
    """One edge of a raster of rows, n long.

    A row lies between two features along the edge, ``taps`` int64 [n, 2], with ``weights`` float32 [n, 2], and sees the
    image from ``edges`` [n, 0] to ``edges`` [n, 1], in fractions.
    """

    taps: _Ints
    weights: _Floats
    edges: npt.NDArray[np.float64]

    @property
    def main(self) -> _Ints:
        """The nearer feature of each row, int64 [n]."""
        return np.where(self.weights[:, 0] < self.weights[:, 1], self.taps[:, 1], self.taps[:, 0])

    def ended(self, feature: int) -> _Axis:
        """Return this with its last row once more, for the newline; with one at that feature where there is none."""
        if len(self.taps):
            again = np.minimum(np.arange(len(self.taps) + 1), len(self.taps) - 1)
            return _Axis(self.taps[again], self.weights[again], self.edges[again])
        return _Axis(np.full((1, 2), feature), np.array([[1, 0]], np.float32), np.array([[0.0, 1.0]]))


def _axis(first: int, features: int, rows: int, start: float, length: float) -> _Axis:
    """Lay rows over features from the first on; the image begins at ``start`` and has that length, in features."""
    taps, weights = _between(features, rows)
    edges = ((np.linspace(first, first + features, rows + 1) - start) / length).clip(0, 1)
    return _Axis(taps + first, weights, np.stack([edges[:-1], edges[1:]], axis=1))


def _between(features: int, rows: int) -> tuple[_Ints, _Floats]:
    """Return what each row takes of which two features, both [rows, 2], as torch's bilinear ``interpolate`` does.

    Corners are not aligned. Positions are float32 there and rounded once (multiplied and subtracted in one go), hence
    the float64 in between.
    """
    taps = np.repeat(np.arange(rows, dtype=np.int64)[:, None], 2, axis=1)
    second = np.zeros(rows, np.float32)
    if rows and rows != features:
        scale = float(np.float32(features) / np.float32(rows))
        at = np.maximum(scale * (np.arange(rows) + 0.5) - 0.5, 0).astype(np.float32)
        taps[:, 0] = np.minimum(at.astype(np.int64), features - 1)
        taps[:, 1] = np.minimum(taps[:, 0] + 1, features - 1)
        second = (at - taps[:, 0].astype(np.float32)).clip(0, 1)
    return taps, np.stack([1 - second, second], axis=1)


def _raster(
    down: _Axis, across: _Axis, side: int, *, first: int = 0, abreast: int = 1, fine: bool = False
) -> Assembly:
    """Return rows line by line over tiles from the ``first`` on, of which so many lie ``abreast``."""
    y, x = down.taps[:, None, :, None], across.taps[None, :, None, :]
    tiles = first + y // side * abreast + x // side
    weights = down.weights[:, None, :, None] * across.weights[None, :, None, :]
    boxes = np.empty((*weights.shape[:2], 4), np.float32)
    boxes[..., 0::2], boxes[..., 1::2] = down.edges[:, None], across.edges[None]
    return Assembly(
        rows=(1 + tiles * side**2 + y % side * side + x % side).reshape(-1, 4),
        weights=weights.reshape(-1, 4),
        boxes=boxes.reshape(-1, 4),
        fine=np.full(weights.shape[0] * weights.shape[1], fine),
        tile_of=(first + down.main[:, None] // side * abreast + across.main // side).reshape(-1),
    )


def _joined(parts: list[Assembly]) -> Assembly:
    return Assembly(
        **{
            name.name: np.concatenate([getattr(part, name.name) for part in parts])
            for name in fields(Assembly)
        }
    )


def _ended(rows: Assembly) -> Assembly:
    """Return rows with one newline after them."""
    again = np.append(np.arange(len(rows.rows)), len(rows.rows) - 1)
    ended = Assembly(**{name.name: getattr(rows, name.name)[again] for name in fields(Assembly)})
    ended.rows[-1], ended.weights[-1] = 0, (1, 0, 0, 0)
    return ended


def _narrow(rows: Assembly) -> Assembly:
    """Return rows with one feature each if no second one has weight."""
    if rows.weights[:, 1:].any():
        return rows
    return replace(rows, rows=rows.rows[:, :1].copy(), weights=rows.weights[:, :1].copy())
