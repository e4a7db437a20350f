"""Spread: max-min diversity over what tokens look like and where they lie; optionally the rest joins what was kept.

Ours, with DivPrune's loop (Alvar et al., CVPR 2025). The distance of two tokens is

    ``1 - cos(x_i, x_j) + 1.5 ||p_i - p_j||``

where p is a token's place in the square grid and the grid's diagonal has length 1. Diversity of features alone leaves
out plain regions, which counting and comparing need. With merging, every dropped token joins the kept one of the most
similar direction, which becomes the mean of itself and of those that joined.

The 1.5 was chosen among 0.5, 1, 1.25, 1.5, 1.75 and 2 on the demo checkpoint's development set (``demo-development``).
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.divprune import (
    cosine_distances,
    max_min_picks,
    max_min_values,
    write_distances,
    write_picks,
)
from divprune_edge.models.selectors.merging import join_nearest, write_join_nearest
from divprune_edge.models.selectors.ranking import write_ascending
from divprune_edge.models.selectors.selector import Indices, Merge, Selector, Tokens, Valid, Values

WEIGHT = 1.5

Array = npt.NDArray[np.float32]


def places(candidates: int) -> Array | None:
    """Return float32 [N, 2]: each row's place in a square grid whose diagonal is 1; None where N is no square."""
    side = isqrt(candidates)
    if side < 2 or side * side != candidates:
        return None
    rows, columns = np.divmod(np.arange(candidates), side)
    grid: Array = (np.stack([rows, columns], axis=1) / ((side - 1) * np.sqrt(2))).astype(np.float32)
    return grid


def spread_distances(tokens: Tokens) -> Array:
    """Return float32 [N, N]: ``1 - cos`` plus the weighted distance of the places."""
    distances, where = cosine_distances(tokens), places(len(tokens))
    if where is None:
        return distances
    down, across = (where[:, None, axis] - where[None, :, axis] for axis in (0, 1))
    apart: Array = distances + np.float32(WEIGHT) * np.sqrt(down * down + across * across)
    return apart


def spread_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the picks in order."""
    return max_min_picks(spread_distances(tokens), valid, keep)


def write_spread(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the same; the distances of the places are computed from 2 N numbers, which keeps the file small."""
    distances, where = write_distances(ops, tokens), places(candidates)
    if where is not None:

        def square(axis: int) -> Any:
            one = ops.constant(where[:, axis : axis + 1], "float32")
            apart = ops.op("Sub", one, ops.constant(where[:, axis], "float32"))
            return ops.op("Mul", apart, apart)

        apart = ops.op("Sqrt", ops.op("Add", square(0), square(1)))
        distances = ops.op("Add", distances, ops.op("Mul", ops.constant(WEIGHT, "float32"), apart))
    return write_ascending(ops, write_picks(ops, distances, valid, candidates, keep), keep)


def _values(tokens: Tokens, valid: Valid, keep: int) -> Values:
    return max_min_values(spread_distances(tokens), valid)


_CITATION = "ours, after Alvar et al., DivPrune, CVPR 2025, arXiv 2503.02175"
_NO_GRID = (
    "Where N is no square number the places do not count; images that are no square grid are taken for one."
)

SPREAD = Selector(
    name="spread",
    op_type="MaxMinOfTokensAndPlaces",
    citation=_CITATION,
    picks=spread_picks,
    body=write_spread,
    parameters={"weight": WEIGHT},
    deviations=(_NO_GRID,),
    values=_values,
)
"""Max-min diversity of tokens and places."""

SPREAD_MERGE = Selector(
    name="spread-merge",
    op_type="MaxMinOfTokensAndPlacesThenMean",
    citation=_CITATION,
    # Sorted: for a merging method the order of the picks is that of the kept tokens.
    picks=lambda tokens, valid, keep: np.sort(spread_picks(tokens, valid, keep)),
    body=write_spread,
    parameters={"weight": WEIGHT},
    merge=Merge(join_nearest, write_join_nearest),
    deviations=(
        _NO_GRID,
        "Every dropped token joins the kept one of the most similar direction, which becomes their mean.",
    ),
    values=_values,
)
"""The same, and the rest joins what was kept."""
