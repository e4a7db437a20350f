"""An image, or a clip, as a vision encoder takes it, and its rows as selectors take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.processing.assembly import Assembly

Ints = npt.NDArray[np.int64]
Captions = tuple[tuple[str, str], ...]
ONE_SPAN: Captions = (("", ""),)


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What a family's preprocessing makes of an image, or of a clip: an image whose tiles are frames.

    Attributes:
        pixels: uint8 [tiles, …], mostly [tiles, H, W, 3].
        size: height and width that the image had.
        assembly: which of its tiles' tokens make its rows; None where it has one tile whose tokens are the rows.
        alone: whether it is its prompt's only image.
        further: inputs of the encoder beside the pixels, by name, the same for all tiles.
        places: int64 [axes, m]; positions of its rows in a prompt, from that of the image on. None: one after the
            other.
        ahead: positions that the image takes in a prompt, or each of its spans.
        captions: of a clip, what stands before and after each span of its rows in a prompt; a span is a frame's rows
            where there are several, else all. None: it is an image.
    """

    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int]
    assembly: Assembly | None = None
    alone: bool = True
    further: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    places: Ints | None = None
    ahead: int = 0
    captions: Captions | None = None

    def spans(self, kept: Ints) -> tuple[int, ...]:
        """Return how many of the rows that were kept each span has."""
        if self.captions is None or len(self.captions) == 1 or self.assembly is None:
            return (len(kept),)
        of = self.assembly.tile_of[_placed_with(kept)]
        return tuple(np.bincount(of, minlength=len(self.captions)).tolist())

    def groups(self, rows: int, sources: int = 1, per: str = "image") -> Groups:
        """Return its rows in one group, or in one for each of its tiles, padded to N ``rows`` of r ``sources``."""
        if self.assembly is None:  # its tokens, which are all read as they come
            row = np.arange(rows)[None]
            return Groups(
                row[..., None], np.ones((1, rows, 1), np.float32), np.ones((1, rows), np.bool_), row
            )
        made, tile_of = self.assembly, self.assembly.tile_of
        places = [np.arange(len(made.rows))]
        if per == "tile" or (per == "frame" and self.captions is not None):
            places = [np.flatnonzero(tile_of == tile) for tile in range(int(tile_of.max()) + 1)]
        count, r = len(places), made.rows.shape[1]
        groups = Groups(
            rows=np.zeros((count, rows, sources), np.int64),
            weights=np.zeros((count, rows, sources), np.float32),
            valid=np.zeros((count, rows), np.bool_),
            reading=np.zeros((count, rows), np.int64),
        )
        for group, place in enumerate(places):
            at = group, slice(len(place))
            groups.rows[(*at, slice(r))], groups.weights[(*at, slice(r))] = (
                made.rows[place],
                made.weights[place],
            )
            groups.valid[at], groups.reading[at] = True, place
        return groups

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that the encoder takes."""
        return {"pixels": self.pixels, **self.further}


def kept_places(image: ImageInput, kept: Ints, rows: int) -> tuple[Ints, int]:
    """Return positions int64 [axes, k] that those of an image's ``rows`` had that were kept, and how many all take."""
    index = _placed_with(kept)
    return (index[None], rows) if image.places is None else (image.places[:, index], image.ahead)


def _placed_with(kept: Ints) -> Ints:
    """Return the row that each is placed with: what stands for none (-1) with the one before it."""
    return np.maximum.accumulate(np.maximum(kept, 0))


@dataclass(frozen=True, eq=False)
class Groups:
    """The rows of an image in groups of N, each of which a selector picks K from; those that count come first.

    Attributes:
        rows: int64 [groups, N, r]; see :class:`~divprune_edge.processing.assembly.Assembly`, also for the next.
        weights: float32 [groups, N, r].
        valid: bool [groups, N]; which rows count.
        reading: int64 [groups, N]; at which place of the image a row is read.
    """

    rows: Ints
    weights: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    reading: Ints


def reading_order(groups: Ints, kept: Ints, reading: Ints) -> tuple[Ints, Ints]:
    """Return in which order rows are read that were kept of groups, and their places in the image, so ordered.

    Args:
        groups: int64 [k]; the group of each row that was kept.
        kept: int64 [k]; which of its group's rows it is. One that stands for none of them (-1), such as a tile's class
            token, is read before its group's others; so is its place.
        reading: that of the :class:`Groups`.
    """
    alone = kept < 0
    places = reading[groups, np.maximum(kept, 0)]
    order = np.lexsort((~alone, places))
    return order, np.where(alone, -1, places)[order]
