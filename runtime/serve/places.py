"""Where kept visual tokens lie in an image: what somebody needs who wants to draw them."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np

from divprune_edge.manifest import Preprocessing
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.runtime.vision import SeenImage


@dataclass(frozen=True)
class Shown:
    """What was kept of an image or a clip.

    Attributes:
        candidates: visual tokens before pruning.
        kept: their indices, ascending for each group that a selector picks from; -1 stands for no single one.
        grid: rows and columns that the candidates from number ``first`` on make, row by row; None where they do not.
        first: candidates before the grid's, such as a class token.
        view: top, left, bottom and right of the grid, in fractions of the image; beyond 0 and 1 where it was padded.
        boxes: of each kept token the same four, where there is no grid.
        frames: of a clip, the frame that each kept token is of.
    """

    candidates: int
    kept: tuple[int, ...]
    grid: tuple[int, int] | None = None
    first: int = 0
    view: tuple[float, ...] = (0.0, 0.0, 1.0, 1.0)
    boxes: tuple[tuple[float, ...], ...] | None = None
    frames: tuple[int, ...] | None = None

    def fields(self) -> dict[str, Any]:
        """Return it as it is written in an answer."""
        said = {
            "candidates": self.candidates,
            "kept": len(self.kept),
            "kept_indices": self.kept,
            "grid": None if self.grid is None else {"rows": self.grid[0], "columns": self.grid[1]},
            "first": self.first,
            "view": self.view,
        }
        more = {"boxes": self.boxes, "frames": self.frames}
        return said | {name: value for name, value in more.items() if value is not None}


def shown(image: ImageInput, seen: SeenImage, candidates: int, facts: Preprocessing) -> Shown:
    """Return where what was kept of an image lies; ``candidates`` of one whose single tile's tokens are its rows."""
    kept = tuple(seen.origins.tolist())
    made = image.assembly
    if made is None:
        for first in (0, 1):
            side = isqrt(candidates - first)
            if side * side == candidates - first:
                return Shown(candidates, kept, (side, side), first, _view(image.size, facts))
        return Shown(candidates, kept)
    boxes = np.where(made.rows[:, :1] == 0, 0, made.boxes)
    frames = None if image.captions is None else tuple(made.tile_of[seen.kept_indices].tolist())
    grid = _grid(boxes) if frames is None else None
    if grid is not None:
        return Shown(len(boxes), kept, grid)
    own = np.where(seen.kept_indices[:, None] < 0, 0, boxes[seen.kept_indices]).astype(float).round(4)
    return Shown(len(boxes), kept, boxes=tuple(map(tuple, own.tolist())), frames=frames)


def _grid(boxes: Any) -> tuple[int, int] | None:
    """Return the rows and columns of boxes that cover an image once, row by row."""
    rows, columns = len(np.unique(boxes[:, 0])), len(np.unique(boxes[:, 1]))
    if rows * columns != len(boxes) or not (boxes[:, 2] > boxes[:, 0]).all():
        return None
    order = np.lexsort((boxes[:, 1], boxes[:, 0]))
    return (rows, columns) if (order == np.arange(len(boxes))).all() else None


def _view(size: tuple[int, int], facts: Preprocessing) -> tuple[float, ...]:
    """Return which part of an image of that height and width its only tile shows."""
    height, width = map(float, size)
    if facts.pad_to_square:
        height = width = max(height, width)
    if facts.resize == "shortest_edge" and facts.shortest_edge:
        scale = facts.shortest_edge / min(height, width)
        height, width = height * scale, width * scale
    elif facts.resize == "exact" and facts.resize_height and facts.resize_width:
        height, width = float(facts.resize_height), float(facts.resize_width)
    shares = []
    for edge, cut, whole in (
        (height, facts.crop_height, size[0] / max(size)),
        (width, facts.crop_width, size[1] / max(size)),
    ):
        share = 1.0 if cut is None else cut / edge
        shares.append(share / whole if facts.pad_to_square else share)
    top, left = ((1 - share) / 2 for share in shares)
    return tuple(round(edge, 6) for edge in (top, left, top + shares[0], left + shares[1]))
