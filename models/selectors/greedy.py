"""Greedy picking: the loop that methods with values that change after each pick share, as reference and as graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import LOWEST, Scores
from divprune_edge.models.selectors.selector import Indices, Valid, require_rows


def greedy_picks(
    valid: Valid, keep: int, value: Callable[[], Scores], after: Callable[[int], None]
) -> Indices:
    """Return ``keep`` times the valid row of the largest value among those not yet picked, in order.

    Args:
        valid: bool [N].
        keep: K.
        value: returns what each row is worth now, [N]; ties go to the smallest index.
        after: is told of each pick.

    Raises:
        UserError: fewer than ``keep`` rows are valid.
    """
    require_rows(valid, keep)
    picks = np.empty(keep, dtype=np.int64)
    taken = ~valid
    for t in range(keep):
        picks[t] = np.argmax(np.where(taken, LOWEST, value()))
        taken[picks[t]] = True
        after(int(picks[t]))
    return picks


def write_greedy(
    ops: Ops,
    valid: Any,
    candidates: int,
    keep: int,
    state: Sequence[Any],
    value: Callable[..., Any],
    after: Callable[..., Sequence[Any]],
) -> Any:
    """Write the same: int64 [b, K] in the order of picking.

    ``value(inner, *state)`` writes float32 [b, N], ``after(inner, pick [b, 1], *state)`` the state behind a pick.
    """
    rows, lowest = ops.constant(np.arange(candidates)), ops.constant(LOWEST, "float32")

    def step(inner: Ops, carried: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        taken, *now = carried
        worth = inner.op("Where", taken, lowest, value(inner, *now))
        pick = inner.op("ArgMax", worth, axis=1, keepdims=1)
        taken = inner.op("Or", taken, inner.op("Equal", rows, pick))
        return [taken, *after(inner, pick, *now)], [pick]

    return write_loop(ops, keep, [ops.op("Not", valid), *state], step)[1]


def write_picks_from(
    ops: Ops, first: Any, keep: int, start: Any, reach: Callable[[Ops, Any, Any], Any]
) -> Any:
    """Write ``first`` [b, 1], then K - 1 times the row of the largest value: int64 [b, K].

    ``start`` are the values [b, N] before the first pick, ``reach(inner, values, pick)`` writes them behind one, with
    what was picked at the bottom.
    """

    def step(inner: Ops, carried: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        pick = inner.op("ArgMax", carried[0], axis=1, keepdims=1)
        return [reach(inner, carried[0], pick)], [pick]

    values = reach(ops, start, first)
    if keep == 1:
        return first
    return ops.op("Concat", first, write_loop(ops, keep - 1, [values], step)[1], axis=1)


def write_loop(
    ops: Ops,
    count: int,
    state: Sequence[Any],
    step: Callable[[Ops, Sequence[Any]], tuple[Sequence[Any], Sequence[Any]]],
) -> tuple[list[Any], Any]:
    """Write ``count`` steps that return (state, [pick [b, 1]]): the last state, and int64 [b, count]."""
    last, (stacked,) = ops.loop(count, state, step)
    return last, ops.op("Transpose", ops.op("Squeeze", stacked, ops.constant([2])), perm=[1, 0])
