"""Median and percentiles of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """``count`` measurements in one unit. Percentiles are interpolated: with few of them p99 is nearly the largest."""

    count: int
    median: float
    p90: float
    p99: float
    smallest: float
    largest: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields, rounded to six digits behind the point."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of at least one measurement."""
    median, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
    return Summary(len(values), median, p90, p99, float(min(values)), float(max(values)))
