"""CDPruner with image-only relevance: a determinantal point process over relevant and diverse tokens.

Zhang et al.: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
NeurIPS 2025, arXiv 2506.10967. The kernel is ``L = diag(q) S diag(q)`` with S the cosines between tokens and q the
relevance, scaled to [0, 1]; a set that maximises ``det L_Y`` is built greedily with the incremental Cholesky
factorisation of Chen et al. (NeurIPS 2018): pick the largest ``d2``, then with j the pick

    ``e = (L_j - sum_t C_t[j] C_t) / sqrt(d2_j)``, ``d2 = d2 - e^2``, e joins C.

The paper's relevance is the similarity to the question in CLIP's common space. LLaVA checkpoints hold no text
tower, so this is *not* conditional on the question: q is the class token's attention in the feature layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.greedy import write_loop
from divprune_edge.models.selectors.ranking import (
    LOWEST,
    cosine_similarities,
    write_ascending,
    write_similarities,
)
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values, require_rows
from divprune_edge.models.signals import CLS_ATTENTION

EPSILON = 1e-6
# Below this, what a token adds to the determinant is rounding: such tokens tie, and the smallest index wins.
FLOOR = 1e-5

Array = npt.NDArray[np.float32]


def relevance(valid: Valid, attention: Array) -> Array:
    """Return attention [N] scaled to [0, 1] over the valid rows."""
    low = np.where(valid, attention, np.float32(np.inf)).min()
    high = np.where(valid, attention, np.float32(-np.inf)).max()
    result: Array = (attention - low) / (high - low + np.float32(EPSILON))
    return result


def kernel(tokens: Tokens, valid: Valid, attention: Array) -> Array:
    """Return L, float32 [N, N]."""
    q = relevance(valid, attention)
    return cosine_similarities(tokens) * q[:, None] * q[None, :]


def cdpruner_picks(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Indices:
    """Return the greedy picks in order."""
    require_rows(valid, keep)
    matrix = kernel(tokens, valid, cls_attention)
    gain = matrix.diagonal().copy()
    factors = np.zeros((keep, valid.size), np.float32)
    picks = np.empty(keep, dtype=np.int64)
    taken = ~valid
    for t in range(keep):
        live = np.where(gain > FLOOR, gain, np.float32(0))
        j = picks[t] = np.argmax(np.where(taken, LOWEST, live))
        taken[j] = True
        rest = matrix[j] - factors[:, j] @ factors
        factors[t] = np.where(live[j] > 0, rest / np.sqrt(np.maximum(live[j], FLOOR)), np.float32(0))
        gain = gain - factors[t] * factors[t]
    return picks


def write_cdpruner(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any
) -> Any:
    """Write the same: a Loop that carries the gains, the factors [b, K, N] and which rows are taken."""
    zero, floor = ops.constant(0.0, "float32"), ops.constant(FLOOR, "float32")
    lowest = ops.constant(LOWEST, "float32")
    matrix = _write_kernel(ops, tokens, valid, cls_attention)
    diagonal = ops.constant(np.eye(candidates), "float32")
    gain = ops.op("ReduceSum", ops.op("Mul", matrix, diagonal), ops.constant([2]), keepdims=0)
    rows, steps = ops.constant(np.arange(candidates)), ops.constant(np.arange(keep)[:, None])
    batch = ops.op("Shape", valid, start=0, end=1)
    empty = ops.op("Expand", zero, ops.op("Concat", batch, ops.constant([keep, candidates]), axis=0))

    def step(inner: Ops, carried: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        gain, factors, taken, count = carried
        live = inner.op("Where", inner.op("Greater", gain, floor), gain, zero)
        pick = inner.op("ArgMax", inner.op("Where", taken, lowest, live), axis=1, keepdims=1)
        line = inner.op("GatherND", matrix, pick, batch_dims=1)
        # The picked column of the factors, [b, 1, K], times the factors [b, K, N].
        turned = inner.op("Transpose", factors, perm=[0, 2, 1])
        column = inner.op("Unsqueeze", inner.op("GatherND", turned, pick, batch_dims=1), ops.constant([1]))
        known = inner.op("Squeeze", inner.op("MatMul", column, factors), ops.constant([1]))
        best = inner.op(
            "ReduceMax",
            inner.op("Where", inner.op("Equal", rows, pick), live, zero),
            ops.constant([1]),
            keepdims=1,
        )
        root = inner.op("Sqrt", inner.op("Max", best, floor))
        rest = inner.op("Div", inner.op("Sub", line, known), root)
        new = inner.op("Where", inner.op("Greater", best, zero), rest, zero)
        place = inner.op("Equal", steps, count)
        factors = inner.op("Where", place, inner.op("Unsqueeze", new, ops.constant([1])), factors)
        gain = inner.op("Sub", gain, inner.op("Mul", new, new))
        taken = inner.op("Or", taken, inner.op("Equal", rows, pick))
        return [gain, factors, taken, inner.op("Add", count, ops.constant(1))], [pick]

    start = [gain, empty, ops.op("Not", valid), ops.op("Identity", ops.constant(0))]
    return write_ascending(ops, write_loop(ops, keep, start, step)[1], keep)


def _write_kernel(ops: Ops, tokens: Any, valid: Any, attention: Any) -> Any:
    """Write L: float32 [b, N, N]."""
    high_end, low_end = ops.constant(-LOWEST, "float32"), ops.constant(LOWEST, "float32")
    low = ops.op("ReduceMin", ops.op("Where", valid, attention, high_end), ops.constant([1]), keepdims=1)
    high = ops.op("ReduceMax", ops.op("Where", valid, attention, low_end), ops.constant([1]), keepdims=1)
    span = ops.op("Add", ops.op("Sub", high, low), ops.constant(EPSILON, "float32"))
    q = ops.op("Div", ops.op("Sub", attention, low), span)
    scaled = ops.op("Mul", write_similarities(ops, tokens), ops.op("Unsqueeze", q, ops.constant([2])))
    return ops.op("Mul", scaled, ops.op("Unsqueeze", q, ops.constant([1])))


def _values(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Values:
    matrix = kernel(tokens, valid, cls_attention).astype(np.float64)

    def value(picks: Sequence[int]) -> npt.NDArray[np.float64]:
        """What each row adds to the determinant: its Schur complement; rounding counts as nothing."""
        gain = matrix.diagonal()
        if len(picks):
            chosen = list(picks)
            inner = matrix[np.ix_(chosen, chosen)] + FLOOR * np.eye(len(chosen))
            across = matrix[chosen]
            gain = gain - np.einsum("kn,kn->n", across, np.linalg.solve(inner, across))
        return np.asarray(np.where(gain > FLOOR, gain, 0.0))

    return value


CDPRUNER = Selector(
    name="cdpruner",
    op_type="DeterminantalImageRelevance",
    citation="Zhang et al., CDPruner, NeurIPS 2025, arXiv 2506.10967",
    picks=cdpruner_picks,
    body=write_cdpruner,
    signals=(CLS_ATTENTION,),
    parameters={"relevance": "image"},
    deviations=(
        "Relevance is the class token's attention, not similarity to the question: LLaVA checkpoints hold no text "
        "tower.",
        "What adds less than 1e-5 to the determinant counts as nothing.",
    ),
    values=_values,
)
"""Greedy MAP of a DPP with image-only relevance."""
