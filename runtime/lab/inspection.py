"""What a selector kept of an image: which parts, in which order they were picked, and how well they cover it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.images import load_image
from divprune_edge.runtime.budgets import Budgets, coverage_radius
from divprune_edge.runtime.lab.evaluation.coverage import smallest_distance
from divprune_edge.runtime.lab.rows import rows_of

if TYPE_CHECKING:
    from divprune_edge.processing.sources import ImageSource
    from divprune_edge.runtime.pipeline import Pipeline

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Where N visual tokens look.

    Attributes:
        boxes: [N, 4], top, left, bottom and right in fractions of the image; empty where a token sees nothing of it: a
            class token, a line's end, padding.
        fine: bool [N]; tokens of an image's tiles, not of the whole at once.
        ends: bool [N]; tokens that end a line and see nothing.
    """

    boxes: npt.NDArray[np.floating]
    fine: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """An image, uint8 [H, W, 3], and the visual tokens that were kept of it.

    It is as the encoder saw it, or whole where that saw tiles of it. ``picks`` int64 [K] are the kept tokens in the
    order of picking, -1 for one that stands for no part; the order is the reference's, where each tile is picked from
    by itself in turn.
    """

    selector: str
    tokens: int
    pixels: npt.NDArray[np.uint8]
    picks: _Ints
    places: Places
    coverage: float
    smallest: float

    @property
    def kept(self) -> str:
        """How many of how many, and how many of these end a line."""
        ends = int(self.places.ends[self.picks[self.picks >= 0]].sum())
        said = f"{len(self.picks)} of {self.tokens} visual tokens"
        return f"{said} ({ends} of them line ends)" if self.places.ends.any() else said

    @property
    def caption(self) -> str:
        """One line that says what is drawn."""
        if self.selector == UNPRUNED:
            return f"all {self.tokens} visual tokens"
        return f"{self.selector}: {self.kept}, coverage radius {self.coverage:.3f}"


def inspect_selection(pipeline: Pipeline, image: ImageSource) -> Selection:
    """Encode ``image`` and return what the pipeline's selector keeps of it.

    Raises:
        UserError: the image cannot be used, or its tokens are no square grid.
    """
    pruning, vision, backend = pipeline.pruning, pipeline.vision, pipeline.backend
    manifest = pipeline.bundle.manifest
    (read,) = vision.read([image])
    places = _places(read, manifest.vision_encoder.uncut or manifest.candidates)
    candidates = vision.encode([read], [pruning])
    selector = vision.fitting(candidates, pruning) if isinstance(pruning, Budgets) else pruning
    signals = selector.signals if selector else ()
    rows = rows_of(backend, candidates, signals, manifest.vision_encoder.looked_at)
    picks = kept = vision.select(candidates, selector).kept_indices
    if selector is not None and selector.name in SELECTORS:
        reference = rows.picked(SELECTORS[selector.name].picks, selector.keep)
        picks = _ordered(kept, _in_turn(reference))
    origins = candidates.origins
    return Selection(
        selector=selector.id if selector else UNPRUNED,
        tokens=len(rows.tokens),
        pixels=read.pixels[0] if read.assembly is None else np.asarray(load_image(image)),
        picks=picks if origins is None else np.where(picks < 0, picks, origins[0][picks]),
        places=places,
        coverage=coverage_radius(rows.looked_at, kept),
        smallest=smallest_distance(rows.looked_at, kept),
    )


def _in_turn(picked: Sequence[_Ints]) -> _Ints:
    """Return what was picked of each group, the first picks of all first."""
    turns = np.concatenate([np.arange(len(picks)) for picks in picked])
    return np.concatenate(picked)[np.argsort(turns, kind="stable")]


def _ordered(kept: _Ints, reference: _Ints) -> _Ints:
    """Return what the graph kept in the reference's order; where rounding broke a tie, the rest comes last."""
    place = {int(token): i for i, token in enumerate(reference)}
    return np.array(sorted(kept.tolist(), key=lambda token: place.get(token, len(place))), np.int64)


def _places(image: ImageInput, tokens: int) -> Places:
    """Return where the tokens of an image look: as its rows say, or in a square grid after the class token."""
    if image.assembly is not None:
        ends = image.assembly.rows[:, 0] == 0
        boxes = np.where(ends[:, None], 0, image.assembly.boxes)
        return Places(boxes, image.assembly.fine, ends)
    for first in (0, 1):
        side = isqrt(tokens - first)
        if side * side == tokens - first:
            return square_grid(side, first)
    raise UserError(
        f"{tokens} visual tokens are no square grid of patches: they cannot be drawn.", code="grid-not-square"
    )


def square_grid(side: int, first: int = 0) -> Places:
    """Return the places of side * side patches that cover the image, after so many tokens that are none."""
    boxes, (rows, columns) = np.zeros((first + side**2, 4)), np.divmod(np.arange(side**2), side)
    boxes[first:] = np.stack([rows, columns, rows + 1, columns + 1], axis=1) / side
    none = np.zeros(len(boxes), np.bool_)
    return Places(boxes, none, none)
