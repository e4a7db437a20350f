"""ToDRE, stage 1: begin at the token the class token attends to most, then add the least similar ones.

Li et al.: "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance", 2025, arXiv 2505.18757v2.
With S the chosen tokens, each step picks ``argmin_i sum_{s in S} cos(x_i, x_s)``. (Version 1 of the paper, under
another title, used the maximum in place of the sum.)

Written with distances, as DivPrune is: ``argmax_i sum_s (1 - cos(x_i, x_s))`` picks the same tokens, and one
kernel with another way to accumulate serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.divprune import cosine_distances, write_distances
from divprune_edge.models.selectors.greedy import write_picks_from
from divprune_edge.models.selectors.ranking import LOWEST, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values, require_rows
from divprune_edge.models.signals import CLS_ATTENTION


def max_sum_picks(distances: npt.NDArray[np.floating[Any]], valid: Valid, keep: int, first: int) -> Indices:
    """Return ``first``, then rows by their summed distance to the chosen ones; ties to the smallest index."""
    require_rows(valid, keep)
    picks = np.empty(keep, dtype=np.int64)
    picks[0] = first
    chosen = ~valid
    total = np.zeros(valid.size, distances.dtype)
    for t in range(1, keep):
        chosen[picks[t - 1]] = True
        total = total + distances[picks[t - 1]]
        picks[t] = np.argmax(np.where(chosen, LOWEST, total))
    return picks


def todre_picks(
    tokens: Tokens, valid: Valid, keep: int, *, cls_attention: npt.NDArray[np.float32]
) -> Indices:
    """Return the picks of stage 1 in order."""
    first = int(np.argmax(np.where(valid, cls_attention, LOWEST)))
    return max_sum_picks(cosine_distances(tokens), valid, keep, first)


def write_todre(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any) -> Any:
    """Write the same.

    ::

        cls_attention ─► TopK(1) ─► first ─┐
        tokens ─► distances ───────────────┴► Loop(K - 1): ArgMax, its row, Add ─► picks
    """
    distances = write_distances(ops, tokens)
    first = write_top(ops, cls_attention, valid, 1)
    rows, lowest = ops.constant(np.arange(candidates)), ops.constant(LOWEST, "float32")

    def reach(inner: Ops, total: Any, pick: Any) -> Any:
        """Summed distances after ``pick`` [b, 1] joined; rows at the bottom stay there."""
        row = inner.op("GatherND", distances, pick, batch_dims=1)
        out = inner.op("Or", inner.op("Equal", total, lowest), inner.op("Equal", rows, pick))
        return inner.op("Where", out, lowest, inner.op("Add", total, row))

    start = ops.op("Where", valid, ops.constant(0.0, "float32"), lowest)
    picks = write_picks_from(ops, first, keep, start, reach)
    return write_ascending(ops, picks, keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: npt.NDArray[np.float32]) -> Values:
    distances = cosine_distances(tokens).astype(np.float64)

    def value(picks: Sequence[int]) -> npt.NDArray[np.float64]:
        return (
            np.asarray(distances[list(picks)].sum(axis=0)) if len(picks) else cls_attention.astype(np.float64)
        )

    return value


TODRE = Selector(
    name="todre",
    op_type="MinSumSimilarity",
    citation="Li et al., ToDRE, 2025, arXiv 2505.18757v2, stage 1",
    picks=todre_picks,
    body=write_todre,
    signals=(CLS_ATTENTION,),
    deviations=(
        "Stage 1 alone: stage 2 is the schedule todre-2.",
        "The first token goes by attention in the feature layer; the paper takes the encoder's last, which LLaVA does "
        "not run.",
    ),
    values=_values,
)
"""Greedy max-sum diversity from an attention-chosen start."""
