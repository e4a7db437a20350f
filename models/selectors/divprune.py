"""DivPrune: keep the tokens that are farthest from each other (max-min diversity).

Alvar, Singh, Akbari, Zhang: "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
CVPR 2025, arXiv 2503.02175, Algorithm 1. With the distance d(i, j) = 1 - cos(x_i, x_j):

1. the first pick is the token whose nearest other token is farthest, argmax_i min_{j != i} d(i, j);
2. every further pick is the token farthest from those already chosen, argmax_i min_{s in S} d(i, s).

Ties go to the smallest index, a chosen token is never chosen again, rows with ``valid = False`` neither count
nor are picked, and the result is in ascending order. Distances are float32 whatever the tokens' type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.greedy import write_picks_from
from divprune_edge.models.selectors.ranking import cosine_similarities, write_ascending, write_similarities
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values, require_rows

# Above every cosine distance (at most 2, plus rounding), and below every one (at least 0, minus rounding).
_FAR, _TAKEN = 4.0, -4.0


def cosine_distances(tokens: Tokens) -> npt.NDArray[np.float32]:
    """Return float32 [N, N] of ``1 - cos`` between the rows of ``tokens`` [N, D].

    Dot products of the raw values are accumulated in float32 and divided by the float32 norms, bounded below
    by the smallest normal number: a zero row has distance 1 to every other.
    """
    distances: npt.NDArray[np.float32] = np.float32(1) - cosine_similarities(tokens)
    return distances


def max_min_picks(distances: npt.NDArray[np.floating[Any]], valid: Valid, keep: int) -> Indices:
    """Return the picks in the order in which max-min diversity makes them.

    Args:
        distances: [N, N], any float type; comparisons happen in that type.
        valid: bool [N].
        keep: K, at most the number of valid rows.

    Returns:
        int64 [K], distinct.

    Raises:
        UserError: fewer than ``keep`` rows are valid.
    """
    require_rows(valid, keep)
    others = valid[None, :] & ~np.eye(valid.size, dtype=bool)
    nearest = np.where(others, distances, _FAR).min(axis=1)
    picks = np.empty(keep, dtype=np.int64)
    picks[0] = np.argmax(np.where(valid, nearest, _TAKEN))
    to_chosen = np.where(valid, distances[picks[0]], _TAKEN)
    to_chosen[picks[0]] = _TAKEN
    for t in range(1, keep):
        picks[t] = np.argmax(to_chosen)
        to_chosen = np.minimum(to_chosen, distances[picks[t]])
        to_chosen[picks[t]] = _TAKEN
    return picks


def max_min_select(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the ascending int64 [K] indices that DivPrune keeps of ``tokens`` [N, D]."""
    return np.sort(max_min_picks(cosine_distances(tokens), valid, keep))


def replay_regret(distances: npt.NDArray[np.floating[Any]], valid: Valid, chosen: Indices) -> float:
    """Return how far a chosen set is from what max-min would have picked, 0 for an exact one.

    Max-min is replayed in float64 on the full matrix, but allowed to pick only from ``chosen``. At each step
    the regret is the best candidate's value over all rows less the best within the set; the largest one, the
    first pick included, is counted. Unlike a bound on the smallest kept distance, it rejects random sets.

    Rounding decides between candidates that are as far as each other, and everything after follows from that: the
    first pick is such a tie wherever the two loneliest tokens are each other's nearest. So each of them is tried, and
    the smallest regret is returned.
    """
    d = distances.astype(np.float64)
    inside = np.zeros(valid.size, dtype=bool)
    inside[chosen] = True
    others = valid[None, :] & ~np.eye(valid.size, dtype=bool)
    value = np.where(valid, np.where(others, d, _FAR).min(axis=1), _TAKEN)
    best = np.inf
    ways = [(0, inside, value, 0.0)]
    for _ in range(_WAYS * len(chosen)):
        if not ways or best <= _TIE:
            break
        step, inside, value, regret = ways.pop()
        candidates = np.where(inside, value, -np.inf)
        order = np.argsort(-candidates, kind="stable")
        regret = max(regret, float(value.max() - candidates[order[0]]))
        if regret >= best:
            continue
        if step == len(chosen) - 1:
            best = regret
            continue
        for pick in reversed(order[candidates[order] >= candidates[order[0]] - _TIE]):
            left, after = inside.copy(), np.where(valid, d[pick], _TAKEN)
            left[pick] = False
            if step:
                after = np.minimum(value, after)
            after[pick] = _TAKEN
            ways.append((step + 1, left, after, regret))
    return float(best)


# Distances that differ by less are the same in float32, whose last place is 1.2e-7 at 1.
_TIE = 1e-6
# How many orders of tied picks are tried at most; the first is the likeliest.
_WAYS = 64


def write_selection(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write DivPrune with standard operators: tokens [b, N, D] and valid [b, N] to ascending int64 [b, K]."""
    picks = write_picks(ops, write_distances(ops, tokens), valid, candidates, keep)
    return write_ascending(ops, picks, keep)


def write_picks(ops: Ops, distances: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the picks from float32 distances [b, N, N]: int64 [b, K] in the order they are made.

    ::

        distances ─► nearest other ─► ArgMax ─► first pick
            │                                       │
            └──► Loop(K - 1): ArgMax, its row, Min ◄┘──► picks
    """
    taken, far = ops.constant(_TAKEN, "float32"), ops.constant(_FAR, "float32")
    rows = ops.constant(np.arange(candidates))
    self_pair = ops.op("Equal", ops.constant(np.arange(candidates)[:, None]), rows)
    countable = ops.op(
        "Not", ops.op("Or", self_pair, ops.op("Not", ops.op("Unsqueeze", valid, ops.constant([1]))))
    )
    nearest = ops.op("ReduceMin", ops.op("Where", countable, distances, far), ops.constant([2]), keepdims=0)
    value = ops.op("Where", valid, nearest, taken)
    first = ops.op("ArgMax", value, axis=1, keepdims=1)

    def reach(inner: Ops, value: Any, pick: Any) -> Any:
        """Distances to the chosen set after ``pick`` [b, 1] joined it; chosen rows stay at the bottom."""
        row = inner.op("GatherND", distances, pick, batch_dims=1)
        return inner.op("Where", inner.op("Equal", rows, pick), taken, inner.op("Min", value, row))

    # Every valid row starts above all distances, every invalid one below: then each step is the same.
    start = ops.op("Where", valid, far, taken)
    return write_picks_from(ops, first, keep, start, reach)


def write_distances(ops: Ops, tokens: Any) -> Any:
    """Write float32 [b, N, N] of ``1 - cos`` between the rows of tokens [b, N, D]."""
    cosines = write_similarities(ops, tokens)
    return ops.op("Sub", ops.constant(1.0, "float32"), cosines)


def max_min_values(distances: npt.NDArray[np.floating[Any]], valid: Valid) -> Values:
    """Return what each row is worth to max-min behind some picks, in float64."""
    distances = distances.astype(np.float64)
    others = valid[None, :] & ~np.eye(valid.size, dtype=bool)

    def value(picks: Sequence[int]) -> npt.NDArray[np.float64]:
        if not len(picks):
            return np.asarray(np.where(others, distances, _FAR).min(axis=1))
        return np.asarray(distances[list(picks)].min(axis=0))

    return value


DIVPRUNE = Selector(
    name="divprune",
    op_type="MaxMinDiversity",
    citation="Alvar et al., DivPrune, CVPR 2025, arXiv 2503.02175",
    picks=lambda tokens, valid, keep: max_min_picks(cosine_distances(tokens), valid, keep),
    body=write_selection,
    values=lambda tokens, valid, keep: max_min_values(cosine_distances(tokens), valid),
)
