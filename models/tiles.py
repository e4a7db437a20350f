"""How many rows and tiles an image has, whatever its family."""

from __future__ import annotations

from divprune_edge.manifest import Per
from divprune_edge.models.families.family import Spec

SOURCE_BYTES = 8 + 4
"""Of a token that a row is made of: which one it is, and its weight."""


def candidates_of(spec: Spec, per: Per = "image") -> int:
    """Return N: the rows that a selector picks from, at most."""
    if spec.rows is None:
        return spec.tokens
    rows = spec.rows
    return max(
        rows.most_of_tile if per == "tile" else rows.most,
        rows.most_of_clip if per == "image" else rows.most_of_frame,
    )


def tiles_of(spec: Spec) -> int:
    """Return the tiles of an image or frames of a clip, at most."""
    return 1 if spec.rows is None else max(spec.rows.tiles, spec.rows.frames)


def picks_of(spec: Spec, per: Per) -> int:
    """Return how often a selector picks from an image or a clip, at most."""
    if spec.rows is None or per == "image":
        return 1
    return tiles_of(spec) if per == "tile" else max(spec.rows.frames, 1)


def row_width(spec: Spec) -> int:
    """Return how many values a row of the visual tokens has."""
    return spec.width * (1 + spec.stacked)
