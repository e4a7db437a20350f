"""What a selector kept of an image: which patches, in which order they were picked, and how well they cover it."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.selectors.divprune import cosine_distances
from divprune_edge.runtime.lab.evaluation.coverage import coverage_radius, smallest_distance

if TYPE_CHECKING:
    from divprune_edge.processing.images import ImageSource
    from divprune_edge.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Selection:
    """An image as the encoder saw it, uint8 [H, W, 3], and the visual tokens that were kept of it.

    ``picks`` int64 [K] are the kept tokens in the order of picking, -1 for one that stands for no patch; the order
    is the reference's. ``patches`` is the side of the grid, and ``first`` the token of the first patch.
    """

    selector: str
    tokens: int
    pixels: npt.NDArray[np.uint8]
    picks: npt.NDArray[np.int64]
    patches: int
    first: int
    coverage: float
    smallest: float

    @property
    def caption(self) -> str:
        """One line that says what is drawn."""
        if self.selector == UNPRUNED:
            return f"all {self.tokens} visual tokens"
        share = f"{self.selector}: {len(self.picks)} of {self.tokens} visual tokens"
        return f"{share}, coverage radius {self.coverage:.3f}"


def inspect_selection(pipeline: Pipeline, image: ImageSource) -> Selection:
    """Encode ``image`` and return what the pipeline's selector keeps of it.

    Raises:
        UserError: the image cannot be used, or its tokens are no square grid.
    """
    selector, tokens = pipeline.selector, pipeline.bundle.manifest.candidates
    patches, first = _grid(tokens)
    vision, backend = pipeline._vision, pipeline._backend
    read = vision.read([image])
    candidates = vision.encode(read, [selector])
    rows = backend.to_host(candidates.encoded.tokens)[0]
    picks = kept = vision.select(candidates, selector).kept_indices
    if selector is not None and selector.name in SELECTORS:
        signals = {name: backend.to_host(candidates.encoded.signals[name])[0] for name in selector.signals}
        reference = SELECTORS[selector.name].picks(rows, candidates.valid[0], selector.keep, **signals)
        picks = _ordered(kept, reference)
    distances = cosine_distances(rows)
    return Selection(
        selector=selector.id if selector else UNPRUNED,
        tokens=tokens,
        pixels=read[0].pixels[0],
        picks=picks,
        patches=patches,
        first=first,
        coverage=coverage_radius(distances, kept),
        smallest=smallest_distance(distances, kept),
    )


def _ordered(kept: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return what the graph kept in the reference's order; where rounding broke a tie, the rest comes last."""
    place = {int(token): i for i, token in enumerate(reference)}
    return np.array(sorted(kept.tolist(), key=lambda token: place.get(token, len(place))), np.int64)


def _grid(tokens: int) -> tuple[int, int]:
    """Return the side of the grid of patches, and how many tokens (the class token) come before it."""
    for first in (0, 1):
        side = isqrt(tokens - first)
        if side * side == tokens - first:
            return side, first
    raise UserError(
        f"{tokens} visual tokens are no square grid of patches: they cannot be drawn.", code="grid-not-square"
    )
