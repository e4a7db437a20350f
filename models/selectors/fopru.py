"""FoPru: the patches that the others attend to most, or whole rows of them.

Jiang et al.: "FoPru: Focal Pruning for Efficient Large Vision-Language Models", 2024, arXiv 2411.14164. The
significance of a patch is the attention that it receives in the feature layer. Two strategies: *rank* keeps the K most
significant patches; *row* keeps the rows of the grid that are most significant in sum.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import top_by, top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, require_rows
from divprune_edge.models.signals import ATTENTION_RECEIVED

Array = npt.NDArray[np.float32]

# Sums of rows are rounded to this grid, so that rows of equal sums tie whatever the order of summing.
GRID = 2.0**16


def row_picks(tokens: Tokens, valid: Valid, keep: int, *, attention_received: Array) -> Indices:
    """Return the patches of the most significant rows, row by row; of the last one the most significant."""
    require_rows(valid, keep)
    width = isqrt(valid.size)
    received = np.where(valid, attention_received, np.float32(0))
    totals = np.round(received.reshape(-1, width).sum(axis=1) * np.float32(GRID))
    place = np.empty(len(totals), np.float32)
    place[np.argsort(-totals, kind="stable")] = np.arange(len(totals))
    # Attentions are at most 1, so that no patch passes one of a better row.
    return top_picks(attention_received - np.float32(2) * np.repeat(place, width), valid, keep)


def write_row(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, attention_received: Any
) -> Any:
    """Write the same: "its row's place, then its own significance" as one score."""
    width = isqrt(candidates)
    received = ops.op("Where", valid, attention_received, ops.constant(0.0, "float32"))
    grid = ops.op("Reshape", received, ops.constant([0, width, width]))
    totals = ops.op("ReduceSum", grid, ops.constant([2]), keepdims=0)
    totals = ops.op("Round", ops.op("Mul", totals, ops.constant(GRID, "float32")))
    row, column = (ops.op("Unsqueeze", totals, ops.constant([axis])) for axis in (2, 1))
    earlier = ops.constant(np.arange(width)[None, :] < np.arange(width)[:, None], "bool")
    tie = ops.op("And", ops.op("Equal", column, row), earlier)
    before = ops.op("Or", ops.op("Greater", column, row), tie)
    place = ops.op("ReduceSum", ops.cast(before, "float32"), ops.constant([2]), keepdims=1)
    behind = ops.op("Expand", ops.op("Mul", place, ops.constant(2.0, "float32")), ops.op("Shape", grid))
    behind = ops.op("Reshape", behind, ops.constant([0, candidates]))
    scores = ops.op("Sub", attention_received, behind)
    return write_ascending(ops, write_top(ops, scores, valid, keep), keep)


_CITATION = "Jiang et al., FoPru, 2024, arXiv 2411.14164"

FOPRU = top_by(
    ATTENTION_RECEIVED,
    name="fopru",
    op_type="AttentionReceived",
    citation=f"{_CITATION}, strategy rank",
    deviations=("The class token's query counts like every other where there is one.",),
)
"""Top K by attention received."""

FOPRU_ROW = Selector(
    name="fopru-row",
    op_type="AttentionReceivedByRows",
    citation=f"{_CITATION}, strategy row",
    picks=row_picks,
    body=write_row,
    signals=(ATTENTION_RECEIVED,),
    deviations=(
        "Where K is no multiple of the grid's width, the last row keeps its most significant patches.",
    ),
    raster=True,
)
"""Whole rows by attention received."""
