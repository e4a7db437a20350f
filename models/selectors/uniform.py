"""Uniform: every (M / K)-th of the M valid tokens in raster order, the other baseline.

Pick i is the valid token number ``floor((2 i + 1) M / (2 K))``: the middles of K equal parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import write_rows_at
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, require_rows


def uniform_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the middles of K equal parts of the valid rows, ascending."""
    require_rows(valid, keep)
    rows = np.flatnonzero(valid)
    places = (2 * np.arange(keep) + 1) * len(rows) // (2 * keep)
    return rows[places].astype(np.int64)


def write_uniform(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the same. Positions are whole numbers below 2^24, exact in float32 up to the floor's argument."""
    count = ops.op("ReduceSum", ops.cast(valid, "int64"), ops.constant([1]), keepdims=1)
    odd = ops.constant((2 * np.arange(keep) + 1)[None])
    places = ops.op("Div", ops.op("Mul", odd, count), ops.constant(2 * keep))
    return write_rows_at(ops, valid, ops.cast(places, "float32"))


UNIFORM = Selector(
    name="uniform",
    op_type="UniformSelection",
    citation="baseline",
    picks=uniform_picks,
    body=write_uniform,
)
"""A stride over the tokens in raster order."""
