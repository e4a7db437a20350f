"""AgilePruner with a fixed budget: by attention, and each pick shuts out what is closer to it than a growing bound.

Baek et al.: "AgilePruner: An Empirical Study of Attention and Diversity for Adaptive Visual Token Pruning in Large
Vision-Language Models", ICLR 2026, arXiv 2603.01236. Tokens are taken in the order of the class token's attention;
the t-th pick (from 1) removes every token with ``1 - cos`` below ``0.01 t`` to it. Where all are removed before K are
picked, the rest are the most attended of the removed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.divprune import cosine_distances, write_distances
from divprune_edge.models.selectors.greedy import greedy_picks, write_greedy
from divprune_edge.models.selectors.ranking import write_ascending
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid
from divprune_edge.models.signals import CLS_ATTENTION

STEP = 0.01

# An attention is at most 1: rows that are not shut out come before all others.
_OPEN = 2.0

Array = npt.NDArray[np.float32]


def agilepruner_picks(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Indices:
    """Return the picks in order."""
    distances = cosine_distances(tokens)
    score = np.where(valid, cls_attention, np.float32(0)) + np.float32(_OPEN)
    bounds = iter(np.arange(1, keep + 1, dtype=np.float32) * np.float32(STEP))

    def after(pick: int) -> None:
        shut = (distances[pick] < next(bounds)) & (score >= np.float32(_OPEN))
        score[shut] -= np.float32(_OPEN)

    return greedy_picks(valid, keep, lambda: score, after)


def write_agilepruner(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any
) -> Any:
    """Write the same: a loop that carries what is shut out and the bound."""
    distances = write_distances(ops, tokens)
    zero, one, offset, grow = (ops.constant(x, "float32") for x in (0.0, 1.0, _OPEN, STEP))
    attention = ops.op("Where", valid, cls_attention, zero)
    raised = ops.op("Add", attention, offset)
    # What it was before it was raised, to the last bit of the sum.
    lowered = ops.op("Sub", raised, offset)
    nothing = ops.op("And", valid, ops.op("Not", valid))

    def value(inner: Ops, shut: Any, step: Any) -> Any:
        return inner.op("Where", shut, lowered, raised)

    def after(inner: Ops, pick: Any, shut: Any, step: Any) -> Sequence[Any]:
        bound = inner.op("Mul", step, grow)
        near = inner.op("Less", inner.op("GatherND", distances, pick, batch_dims=1), bound)
        return [inner.op("Or", shut, near), inner.op("Add", step, one)]

    state = [nothing, ops.op("Identity", one)]
    return write_ascending(ops, write_greedy(ops, valid, candidates, keep, state, value, after), keep)


AGILEPRUNER = Selector(
    name="agilepruner",
    op_type="AttentionThenDistance",
    citation="Baek et al., AgilePruner, ICLR 2026, arXiv 2603.01236",
    picks=agilepruner_picks,
    body=write_agilepruner,
    signals=(CLS_ATTENTION,),
    parameters={"step": STEP},
    deviations=(
        "The bound grows by 0.01 a pick for every image; the paper scales it by the image's effective rank over a "
        "data set's average.",
        "Exactly K are kept: removed tokens fill up, by attention.",
    ),
)
"""By attention, with a growing distance to the picks."""
