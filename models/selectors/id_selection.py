"""ID-Selection: the most attended token first, and each pick lowers the scores of what resembles it.

Huang et al.: "ID-Selection: Importance-Diversity Based Visual Token Selection for Efficient LVLM Inference", 2026,
arXiv 2604.05601. The score ``a_i`` is the class token's attention in the feature layer; a pick s multiplies the
others' by ``exp(-20 max(0, cos(x_i, x_s)))``. Written with logarithms, so that nothing becomes 0 on the way:

    ``argmax_i log a_i - 20 sum_s max(0, cos(x_i, x_s))``
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.greedy import greedy_picks, write_greedy
from divprune_edge.models.selectors.ranking import (
    TINY,
    cosine_similarities,
    write_ascending,
    write_similarities,
)
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values
from divprune_edge.models.signals import CLS_ATTENTION

GAMMA = 20.0

Array = npt.NDArray[np.float32]


def id_selection_picks(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Indices:
    """Return the picks in order."""
    decay = np.float32(GAMMA) * np.maximum(cosine_similarities(tokens), 0)
    score = np.log(np.maximum(cls_attention, np.float32(TINY)))

    def after(pick: int) -> None:
        np.subtract(score, decay[pick], out=score)

    return greedy_picks(valid, keep, lambda: score, after)


def write_id_selection(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any
) -> Any:
    """Write the same: a loop that carries the scores."""
    positive = ops.op("Max", write_similarities(ops, tokens), ops.constant(0.0, "float32"))
    decay = ops.op("Mul", ops.constant(GAMMA, "float32"), positive)
    score = ops.op("Log", ops.op("Max", cls_attention, ops.constant(TINY, "float32")))

    def after(inner: Ops, pick: Any, score: Any) -> Sequence[Any]:
        return [inner.op("Sub", score, inner.op("GatherND", decay, pick, batch_dims=1))]

    picks = write_greedy(ops, valid, candidates, keep, [score], lambda inner, score: score, after)
    return write_ascending(ops, picks, keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Values:
    decay = GAMMA * np.maximum(cosine_similarities(tokens).astype(np.float64), 0)
    score = np.log(np.maximum(cls_attention.astype(np.float64), TINY))
    return lambda picks: np.asarray(score - decay[list(picks)].sum(axis=0))


ID_SELECTION = Selector(
    name="id-selection",
    op_type="ImportanceDiversity",
    citation="Huang et al., ID-Selection, 2026, arXiv 2604.05601",
    picks=id_selection_picks,
    body=write_id_selection,
    signals=(CLS_ATTENTION,),
    parameters={"gamma": GAMMA},
    deviations=(
        "Exponential decay with similarity and the factor 20 are published; the cosine of projected tokens, at least "
        "0, is assumed.",
        "Importance is the class token's attention alone, not the question's.",
    ),
    values=_values,
)
"""Attention, lowered exponentially by similarity to the picks."""
