"""HiPrune: anchors where the middle of the encoder looks, their neighbours, and registers of global content.

Liu et al.: "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
2025, arXiv 2508.00553v1. Scores are the attention that a patch receives, mean over heads and queries:

1. anchors: the ``round(K alpha / 5)`` best by the object layer (the 9th of 24);
2. buffers: the four neighbours of each anchor, by index: p - 1, p + 1, p - W, p + W, clamped to the image;
3. registers: the best of the rest by the feature layer, until K tokens are kept.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import top_picks, write_ascending, write_members, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, require_rows
from divprune_edge.models.signals import ATTENTION_OBJECT, ATTENTION_RECEIVED

ALPHA = 0.1

# A received attention is a mean of probabilities, at most 1.
_FIRST = 2.0


def anchor_count(keep: int) -> int:
    """Return the number of anchors; with their four neighbours they are at most K."""
    return round(keep * ALPHA / 5)


def neighbours(anchors: Indices, candidates: int) -> Indices:
    """Return the rows beside, above and below each anchor by index; at an edge of the image they wrap."""
    width = isqrt(candidates)
    moved = np.concatenate([anchors + step for step in (-1, 1, -width, width)])
    inside: Indices = np.clip(moved, 0, candidates - 1)
    return inside


def hiprune_picks(
    tokens: Tokens,
    valid: Valid,
    keep: int,
    *,
    attention_object: npt.NDArray[np.float32],
    attention_received: npt.NDArray[np.float32],
) -> Indices:
    """Return anchors and buffers in raster order, then registers, best first."""
    require_rows(valid, keep)
    anchors = (
        top_picks(attention_object, valid, anchor_count(keep))
        if anchor_count(keep)
        else np.empty(0, np.int64)
    )
    first = np.zeros(valid.size, dtype=bool)
    first[anchors] = True
    first[neighbours(anchors, valid.size)] = True
    return top_picks(np.where(first, np.float32(_FIRST), attention_received), valid, keep)


def write_hiprune(
    ops: Ops,
    tokens: Any,
    valid: Any,
    candidates: int,
    keep: int,
    *,
    attention_object: Any,
    attention_received: Any,
) -> Any:
    """Write the same; the union is a score above all others, so that no step has a dynamic size."""
    scores = attention_received
    if count := anchor_count(keep):
        width = isqrt(candidates)
        anchors = write_top(ops, attention_object, valid, count)
        moved = [ops.op("Add", anchors, ops.constant(step)) for step in (-1, 1, -width, width)]
        rows = ops.op("Concat", anchors, *moved, axis=1)
        inside = ops.op("Min", ops.op("Max", rows, ops.constant(0)), ops.constant(candidates - 1))
        first = write_members(ops, inside, candidates)
        scores = ops.op("Where", first, ops.constant(_FIRST, "float32"), scores)
    return write_ascending(ops, write_top(ops, scores, valid, keep), keep)


HIPRUNE = Selector(
    name="hiprune",
    op_type="HierarchicalAttention",
    citation="Liu et al., HiPrune, 2025, arXiv 2508.00553v1",
    picks=hiprune_picks,
    body=write_hiprune,
    signals=(ATTENTION_OBJECT, ATTENTION_RECEIVED),
    parameters={"alpha": ALPHA},
    deviations=("In towers of other depths the object layer keeps its relative depth (9 of 24).",),
    raster=True,
)
"""Anchors, buffers and registers by received attention."""
