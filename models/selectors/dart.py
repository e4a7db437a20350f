"""DART at the level of embeddings: a few pivots, and for each the tokens that resemble it least.

Wen et al.: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
EMNLP 2025, arXiv 2502.11494. Pivots are the tokens with the largest L1 norm; then each pivot in turn adds its share
of the remaining tokens, those with the lowest cosine similarity to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import (
    cosine_similarities,
    top_picks,
    without,
    write_ascending,
    write_columns,
    write_joined,
    write_similarities,
    write_top,
    write_without,
)
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, require_rows

PIVOTS = 4


def shares(keep: int) -> tuple[int, ...]:
    """Return how many tokens each pivot adds: K less the pivots, split evenly, the first ones get one more."""
    pivots = min(PIVOTS, keep)
    each, more = divmod(keep - pivots, pivots)
    return tuple(each + (i < more) for i in range(pivots))


def dart_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the pivots, then what each of them adds."""
    require_rows(valid, keep)
    x = np.asarray(tokens, dtype=np.float32)
    cosines = cosine_similarities(x)
    pivots = top_picks(np.abs(x).sum(axis=-1), valid, min(PIVOTS, keep))
    picks = list(pivots)
    free = without(valid, pivots)
    for pivot, share in zip(pivots, shares(keep), strict=True):
        if share:
            added = top_picks(-cosines[pivot], free, share)
            free[added] = False
            picks.extend(added)
    return np.asarray(picks, dtype=np.int64)


def write_dart(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the same: one TopK per pivot, no loop."""
    x = ops.cast(tokens, "float32")
    cosines = write_similarities(ops, x)
    norms = ops.op("ReduceSum", ops.op("Abs", x), ops.constant([2]), keepdims=0)
    pivots = write_top(ops, norms, valid, min(PIVOTS, keep))
    groups, free = [pivots], write_without(ops, valid, pivots, candidates)
    for i, share in enumerate(shares(keep)):
        if share:
            pivot = write_columns(ops, pivots, i, i + 1)
            unlike = ops.op("Neg", ops.op("GatherND", cosines, pivot, batch_dims=1))
            added = write_top(ops, unlike, free, share)
            free = write_without(ops, free, added, candidates)
            groups.append(added)
    picks = write_joined(ops, groups)
    return write_ascending(ops, picks, keep)


DART = Selector(
    name="dart",
    op_type="PivotDuplication",
    citation="Wen et al., DART, EMNLP 2025, arXiv 2502.11494",
    picks=dart_picks,
    body=write_dart,
    parameters={"pivots": PIVOTS},
    deviations=(
        "On input embeddings; the paper prunes after the second layer, by norms of keys and similarity of hidden "
        "states.",
        "Image pivots only; the paper adds 4 of text, which a selector does not see.",
        "The rest of the budget is split evenly over the pivots, for exactly K tokens.",
    ),
)
"""Least similar to a few pivots."""
