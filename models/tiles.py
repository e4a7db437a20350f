"""How many rows and tiles an image has, whatever its family."""

from __future__ import annotations

from typing import Literal

from divprune_edge.manifest import Tiling
from divprune_edge.models.families.family import Spec
from divprune_edge.processing.anyres import most_tiles
from divprune_edge.processing.assembly import most_rows

SOURCE_BYTES = 8 + 4
"""Of a token that a row is made of: which one it is, and its weight."""
Per = Literal["image", "tile"]
"""What a selector picks from at a time."""


def candidates_of(spec: Spec, per: Per = "image") -> int:
    """Return N: the rows that a selector picks from, at most."""
    return spec.tokens if spec.tiling is None else rows_of(spec.tiling, per)


def rows_of(tiling: Tiling, per: Per) -> int:
    """Return the same of an image that is cut into tiles. A newline may end each line of a tile's."""
    return most_rows(tiling) if per == "image" else tiling.side * (tiling.side + 1)


def sources_of(tiling: Tiling) -> int:
    """Return how many tokens of tiles a row is made of, at most: four where they are interpolated."""
    return 1 if tiling.max_tiles is None else 4


def tiles_of(spec: Spec) -> int:
    """Return the tiles of an image, at most."""
    return 1 if spec.tiling is None else most_tiles(spec.tiling)


def groups_of(spec: Spec, per: Per) -> int:
    """Return how often a selector picks from an image, at most."""
    return tiles_of(spec) if per == "tile" else 1
