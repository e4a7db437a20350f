"""How many rows and tiles an image has, whatever its family."""

from __future__ import annotations

from typing import Literal

from divprune_edge.models.families.family import Spec
from divprune_edge.processing.anyres import most_tiles
from divprune_edge.processing.assembly import most_rows

SOURCE_BYTES = 8 + 4
"""Of a token that a row is made of: which one it is, and its weight."""
Per = Literal["image", "tile"]
"""What a selector picks from at a time."""


def candidates_of(spec: Spec, per: Per = "image") -> int:
    """Return N: the rows that a selector picks from, at most. A newline may end each line of a tile's."""
    if spec.tiling is None:
        return spec.tokens
    return most_rows(spec.tiling) if per == "image" else spec.tokens + spec.tiling.side


def tiles_of(spec: Spec) -> int:
    """Return the tiles of an image, at most."""
    return 1 if spec.tiling is None else most_tiles(spec.tiling)


def groups_of(spec: Spec, per: Per) -> int:
    """Return how often a selector picks from an image, at most."""
    return tiles_of(spec) if per == "tile" else 1
