"""Ranking by a score: what the methods that pick the best-scored tokens share, as reference and as graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values, require_rows

LOWEST = float(np.finfo(np.float32).min)
"""Score of a row that cannot be picked; finite, because not every runtime orders infinities."""

TINY = float(np.finfo(np.float32).tiny)

Scores = npt.NDArray[np.floating[Any]]


def top_picks(scores: Scores, valid: Valid, keep: int) -> Indices:
    """Return the ``keep`` best valid rows of scores [N] as int64 [K], best first; ties to the smallest index.

    Raises:
        UserError: fewer than ``keep`` rows are valid.
    """
    require_rows(valid, keep)
    masked = np.where(valid, scores, LOWEST)
    return np.argsort(-masked, kind="stable")[:keep].astype(np.int64)


def top_by(
    signal: str, *, name: str, op_type: str, citation: str, deviations: tuple[str, ...] = ()
) -> Selector:
    """Return the selector that keeps the K rows with the largest values of a signal [N]."""

    def picks(tokens: Tokens, valid: Valid, keep: int, **signals: Scores) -> Indices:
        return top_picks(signals[signal], valid, keep)

    def body(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, **signals: Any) -> Any:
        return write_ascending(ops, write_top(ops, signals[signal], valid, keep), keep)

    def values(tokens: Tokens, valid: Valid, keep: int, **signals: Scores) -> Values:
        return constant_values(signals[signal])

    return Selector(
        name=name,
        op_type=op_type,
        citation=citation,
        picks=picks,
        body=body,
        signals=(signal,),
        deviations=deviations,
        values=values,
    )


def constant_values(scores: Scores) -> Values:
    """Return the values of a method whose scores do not depend on what was picked."""
    fixed = scores.astype(np.float64)

    def value(picks: Sequence[int]) -> npt.NDArray[np.float64]:
        return fixed

    return value


def cosine_similarities(tokens: Tokens) -> npt.NDArray[np.float32]:
    """Return float32 [N, N]; a zero row has similarity 0 to every other."""
    x = np.asarray(tokens, dtype=np.float32)
    norms = np.maximum(np.sqrt(np.sum(x * x, axis=-1)), np.float32(TINY))
    cosines: npt.NDArray[np.float32] = x @ x.T / norms[:, None] / norms[None, :]
    return cosines


def write_similarities(ops: Ops, tokens: Any) -> Any:
    """Write float32 [b, N, N] of the cosines between the rows of tokens [b, N, D]."""
    x = ops.cast(tokens, "float32")
    squares = ops.op("ReduceSum", ops.op("Mul", x, x), ops.constant([2]), keepdims=1)
    norms = ops.op("Max", ops.op("Sqrt", squares), ops.constant(TINY, "float32"))
    dots = ops.op("MatMul", x, ops.op("Transpose", x, perm=[0, 2, 1]))
    return ops.op("Div", ops.op("Div", dots, norms), ops.op("Transpose", norms, perm=[0, 2, 1]))


def write_top(ops: Ops, scores: Any, valid: Any, keep: int) -> Any:
    """Write the ``keep`` best valid rows of float32 scores [b, N]: int64 [b, K], best first."""
    masked = ops.op("Where", valid, scores, ops.constant(LOWEST, "float32"))
    return ops.ops("TopK", masked, ops.constant([keep]), axis=1, largest=1, sorted=1, outputs=2)[1]


def write_ascending(ops: Ops, picks: Any, keep: int) -> Any:
    """Write int64 [b, K] in ascending order."""
    return ops.ops("TopK", picks, ops.constant([keep]), axis=1, largest=0, sorted=1, outputs=2)[0]


def write_members(ops: Ops, picks: Any, candidates: int) -> Any:
    """Write bool [b, N]: whether each row is among picks int64 [b, K]."""
    same = ops.op("Equal", ops.op("Unsqueeze", picks, ops.constant([2])), ops.constant(np.arange(candidates)))
    count = ops.op("ReduceMax", ops.cast(same, "float32"), ops.constant([1]), keepdims=0)
    return ops.op("Greater", count, ops.constant(0.5, "float32"))


def without(valid: Valid, picks: Indices) -> Valid:
    """Return bool [N]: the valid rows that are not among ``picks``."""
    rest = valid.copy()
    rest[picks] = False
    return rest


def write_without(ops: Ops, valid: Any, picks: Any, candidates: int) -> Any:
    """Write the same: bool [b, N]."""
    return ops.op("And", valid, ops.op("Not", write_members(ops, picks, candidates)))


def write_columns(ops: Ops, picks: Any, start: int, stop: int) -> Any:
    """Write picks [b, K] from number ``start`` up to ``stop``, which is left out."""
    return ops.op("Slice", picks, ops.constant([start]), ops.constant([stop]), ops.constant([1]))


def write_joined(ops: Ops, groups: Sequence[Any]) -> Any:
    """Write groups of picks [b, k] behind each other."""
    return groups[0] if len(groups) == 1 else ops.op("Concat", *groups, axis=1)


def write_positions(ops: Ops, valid: Any) -> Any:
    """Write float32 [b, N]: how many valid rows come before each row."""
    ones = ops.cast(valid, "float32")  # TensorRT has no CumSum of integers
    return ops.op("Sub", ops.op("CumSum", ones, ops.constant(1)), ones)


def write_rows_at(ops: Ops, valid: Any, positions: Any) -> Any:
    """Write int64 [b, K]: the valid row at each of float32 positions [b, K], counted among the valid rows."""
    place = ops.op("Where", valid, write_positions(ops, valid), ops.constant(-1.0, "float32"))
    hit = ops.op(
        "Equal",
        ops.op("Unsqueeze", positions, ops.constant([2])),
        ops.op("Unsqueeze", place, ops.constant([1])),
    )
    return ops.op("ArgMax", ops.cast(hit, "float32"), axis=2, keepdims=0)
