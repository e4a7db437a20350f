"""The vision graph's signals against what they are by transformers' own queries, keys and hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.comparison import Tolerance, at_most, relative_error
from divprune_edge.manifest import Check

Array = npt.NDArray[Any]


def check_signals(
    found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: Tolerance
) -> list[Check]:
    """Return one check per signal in ``found``; errors are relative to the signal's largest value."""
    checks = []
    for name, values in found.items():
        scale = np.abs(wanted[name]).max()  # an attention is far below 1
        error = relative_error(values / scale, wanted[name] / scale)
        checks.append(at_most("vision", f"signal {name}", error, tolerance.error, unit="relative"))
    return checks
