"""Merging: what the methods share that put something of the dropped tokens into the kept ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import LOWEST, TINY, without, write_without
from divprune_edge.models.selectors.selector import Indices, Tokens, Valid

GRID = 2.0**16
"""Cosines are rounded to its inverse: vectors that are alike tie, whatever the order of summing."""

NO_ROW = -1
"""Index of a kept token that stands for no visual token, or for all that are dropped."""

Array = npt.NDArray[np.float32]


def rounded_cosines(x: Tokens, y: Tokens) -> Array:
    """Return float32 [n, m] of the cosines between the rows of x [n, D] and y [m, D], in steps of 1 / GRID."""
    cosines = _unit(x) @ _unit(y).T
    result: Array = (np.round(cosines * np.float32(GRID)) / np.float32(GRID)).astype(np.float32)
    return result


def _unit(x: Tokens) -> Array:
    x = np.asarray(x, dtype=np.float32)
    unit: Array = x / np.maximum(np.sqrt(np.sum(x * x, axis=-1, keepdims=True)), np.float32(TINY))
    return unit


def write_rounded_cosines(ops: Ops, x: Any, y: Any) -> Any:
    """Write the same for a batch: float32 [b, n, m]."""
    grid = ops.constant(GRID, "float32")
    turned = ops.op("Transpose", write_unit(ops, y), perm=[0, 2, 1])
    cosines = ops.op("MatMul", write_unit(ops, x), turned)
    return ops.op("Div", ops.op("Round", ops.op("Mul", cosines, grid)), grid)


def write_unit(ops: Ops, x: Any) -> Any:
    """Write the rows of x [b, n, D] with length 1, in float32."""
    x = ops.cast(x, "float32")
    squares = ops.op("ReduceSum", ops.op("Mul", x, x), ops.constant([2]), keepdims=1)
    return ops.op("Div", x, ops.op("Max", ops.op("Sqrt", squares), ops.constant(TINY, "float32")))


def nearest(similar: Array, count: int) -> npt.NDArray[np.bool_]:
    """Return bool [n, m]: the ``count`` largest of each row of ``similar``, ties to the smallest index."""
    order = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(similar.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def write_nearest(ops: Ops, similar: Any, count: int) -> Any:
    """Write the same for [b, n, m]: those above the ``count``-th value, and of those equal to it the first."""
    best = ops.ops("TopK", similar, ops.constant([count]), axis=2, largest=1, sorted=1, outputs=2)[0]
    last = ops.op("Slice", best, ops.constant([count - 1]), ops.constant([count]), ops.constant([2]))
    above = ops.op("Greater", similar, last)
    equal = ops.cast(ops.op("Equal", similar, last), "float32")
    room = ops.op(
        "Sub",
        ops.constant(float(count), "float32"),
        ops.op("ReduceSum", ops.cast(above, "float32"), ops.constant([2]), keepdims=1),
    )
    first = ops.op(
        "Mul",
        equal,
        ops.cast(ops.op("LessOrEqual", ops.op("CumSum", equal, ops.constant(2)), room), "float32"),
    )
    return ops.op("Or", above, ops.op("Greater", first, ops.constant(0.5, "float32")))


def join_nearest(tokens: Tokens, valid: Valid, picks: Indices) -> Tokens:
    """Return [K, D]: each kept token, and the mean of it and of the dropped ones of the most similar direction."""
    x = np.asarray(tokens, dtype=np.float32)
    joins = without(valid, picks)
    target = np.argmax(rounded_cosines(x, x[picks]), axis=1)
    member = ((target[:, None] == np.arange(len(picks))) & joins[:, None]).astype(np.float32)
    total = x[picks] + member.T @ np.where(valid[:, None], x, np.float32(0))
    merged: Tokens = (total / (1 + member.sum(axis=0))[:, None]).astype(tokens.dtype)
    return merged


def write_join_nearest(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, picks: Any) -> Any:
    """Write the same, float32 [b, K, D]."""
    x = ops.cast(tokens, "float32")
    kept = write_rows(ops, x, picks)
    joins = write_without(ops, valid, picks, candidates)
    target = ops.op("ArgMax", write_rounded_cosines(ops, x, kept), axis=2, keepdims=1)
    places = ops.op("Range", ops.constant(0), _size(ops, picks), ops.constant(1))
    same = ops.op("And", ops.op("Equal", target, places), ops.op("Unsqueeze", joins, ops.constant([2])))
    member = ops.cast(same, "float32")
    total = ops.op("Add", kept, ops.op("MatMul", ops.op("Transpose", member, perm=[0, 2, 1]), x))
    count = ops.op("ReduceSum", member, ops.constant([1]), keepdims=0)
    count = ops.op("Add", count, ops.constant(1.0, "float32"))
    return ops.op("Div", total, ops.op("Unsqueeze", count, ops.constant([2])))


def write_no_row(ops: Ops, valid: Any) -> Any:
    """Write :data:`NO_ROW` for each of a batch: int64 [b, 1]."""
    shape = ops.op("Concat", ops.op("Shape", valid, start=0, end=1), ops.constant([1]), axis=0)
    return ops.op("Expand", ops.constant([[NO_ROW]]), shape)


def write_rows(ops: Ops, x: Any, picks: Any) -> Any:
    """Write the rows of x [b, N, D] at picks [b, K]."""
    return ops.op("GatherND", x, ops.op("Unsqueeze", picks, ops.constant([2])), batch_dims=1)


def others_only(similar: Array, rows: Indices, counts: Valid) -> Array:
    """Return ``similar`` [n, N] with the lowest value at each row's own place and where ``counts`` is False."""
    own = rows[:, None] == np.arange(similar.shape[1])
    masked: Array = np.where(own | ~counts, np.float32(LOWEST), similar)
    return masked


def write_others_only(ops: Ops, similar: Any, rows: Any, counts: Any, candidates: int) -> Any:
    """Write the same: similar [b, n, N], rows int64 [b, n], counts bool [b, N]."""
    own = ops.op("Equal", ops.op("Unsqueeze", rows, ops.constant([2])), ops.constant(np.arange(candidates)))
    out = ops.op("Or", own, ops.op("Not", ops.op("Unsqueeze", counts, ops.constant([1]))))
    return ops.op("Where", out, ops.constant(LOWEST, "float32"), similar)


def _size(ops: Ops, picks: Any) -> Any:
    return ops.op("Squeeze", ops.op("Shape", picks, start=1, end=2), ops.constant([0]))
