"""A label-free measure of a kept set: how different its members are; how well it covers is ``runtime.budgets``'s."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.selectors.divprune import cosine_distances


def smallest_distance(tokens: npt.NDArray[np.floating[Any]], kept: npt.NDArray[np.int64]) -> float:
    """Return the smallest ``1 - cos`` between two kept rows of tokens [N, D], 2 (the most) where fewer are kept.

    ``kept`` int64 [K]; negative ones stand for no visual token.
    """
    rows = kept[kept >= 0]
    if len(rows) < 2:
        return 2.0
    within = cosine_distances(tokens[rows])
    np.fill_diagonal(within, 4.0)
    return float(max(0.0, within.min()))
