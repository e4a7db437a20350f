"""SCOPE: repeatedly the token that covers most of what is not covered yet, weighed by its attention.

Deng et al.: "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", NeurIPS 2025, arXiv
2510.24214. With S the cosines and ``c_j`` how well the chosen tokens cover token j (the largest ``S_js``, 0 at first),
each step picks

    ``argmax_i a_i sum_j max(0, S_ji - c_j)``

where a is the class token's attention in the feature layer. A step looks at all pairs, not at one row of them: the
kernels of max-min, whose step is one row, do not serve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.greedy import greedy_picks, write_greedy
from divprune_edge.models.selectors.ranking import cosine_similarities, write_ascending, write_similarities
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values
from divprune_edge.models.signals import CLS_ATTENTION

# Above every cosine: a row that is not valid has nothing to cover.
_COVERED = 2.0

Array = npt.NDArray[np.float32]


def scope_picks(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Indices:
    """Return the picks in order."""
    similar = cosine_similarities(tokens)
    covered = np.where(valid, np.float32(0), np.float32(_COVERED))

    def value() -> Array:
        gains: Array = np.maximum(similar - covered[:, None], 0).sum(axis=0) * cls_attention
        return gains

    def after(pick: int) -> None:
        np.maximum(covered, similar[pick], out=covered)

    return greedy_picks(valid, keep, value, after)


def write_scope(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any) -> Any:
    """Write the same: a loop that carries how well each token is covered."""
    similar = write_similarities(ops, tokens)
    zero = ops.constant(0.0, "float32")
    covered = ops.op("Where", valid, zero, ops.constant(_COVERED, "float32"))

    def value(inner: Ops, covered: Any) -> Any:
        more = inner.op("Sub", similar, inner.op("Unsqueeze", covered, ops.constant([2])))
        gains = inner.op("ReduceSum", inner.op("Max", more, zero), ops.constant([1]), keepdims=0)
        return inner.op("Mul", gains, cls_attention)

    def after(inner: Ops, pick: Any, covered: Any) -> Sequence[Any]:
        return [inner.op("Max", covered, inner.op("GatherND", similar, pick, batch_dims=1))]

    return write_ascending(ops, write_greedy(ops, valid, candidates, keep, [covered], value, after), keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Values:
    similar = cosine_similarities(tokens).astype(np.float64)

    def value(picks: Sequence[int]) -> npt.NDArray[np.float64]:
        covered = np.maximum(similar[list(picks)].max(axis=0), 0) if len(picks) else np.zeros(valid.size)
        gains = np.maximum(similar[valid] - covered[valid, None], 0).sum(axis=0)
        return np.asarray(gains * cls_attention)

    return value


SCOPE = Selector(
    name="scope",
    op_type="SaliencyCoverage",
    citation="Deng et al., SCOPE, NeurIPS 2025, arXiv 2510.24214",
    picks=scope_picks,
    body=write_scope,
    signals=(CLS_ATTENTION,),
    deviations=("Cosines of projected tokens; the released code takes the encoder's features.",),
    values=_values,
)
"""Saliency times what is newly covered, greedily."""
