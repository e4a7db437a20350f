"""Label-free measures of a kept set: how well it covers the image, and how different its members are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def coverage_radius(distances: npt.NDArray[np.floating[Any]], kept: npt.NDArray[np.int64]) -> float:
    """Return the largest distance of a dropped token to its nearest kept one, 0 where none is dropped.

    Args:
        distances: [N, N], ``1 - cos`` between visual tokens.
        kept: [K]; negative ones stand for no visual token and do not count.
    """
    rows = kept[kept >= 0]
    dropped = np.setdiff1d(np.arange(len(distances)), rows)
    if not len(dropped) or not len(rows):
        return 0.0 if not len(dropped) else 2.0
    return float(distances[np.ix_(dropped, rows)].min(axis=1).max())


def smallest_distance(distances: npt.NDArray[np.floating[Any]], kept: npt.NDArray[np.int64]) -> float:
    """Return the smallest distance between two kept tokens, 2 (the largest there is) where fewer are kept."""
    rows = kept[kept >= 0]
    if len(rows) < 2:
        return 2.0
    within = distances[np.ix_(rows, rows)]
    np.fill_diagonal(within, 4.0)
    return float(max(0.0, within.min()))
