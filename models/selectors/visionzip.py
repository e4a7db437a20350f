"""VisionZip: the tokens that the class token attends to, and a few contextual ones that the rest is merged into.

Yang et al.: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467.
Of K tokens, ``round(10 K / 64)`` are contextual:

1. dominant: the class token itself and the best by its attention in the feature layer;
2. targets: of the M tokens left, in raster order, every ``floor(M / contextual)``-th;
3. every other token joins the target with the most similar key, and a target becomes ``target + mean(joined)``.

The kept tokens are, in this order: class token, dominant in raster order, contextual in raster order. Their
indices are -1 for the class token, the token itself, and the target.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.merging import NO_ROW, write_no_row, write_rows
from divprune_edge.models.selectors.ranking import (
    TINY,
    top_picks,
    without,
    write_ascending,
    write_columns,
    write_joined,
    write_rows_at,
    write_top,
    write_without,
)
from divprune_edge.models.selectors.selector import Indices, Merge, Selector, Tokens, Valid, require_rows
from divprune_edge.models.signals import CLS_ATTENTION, CLS_TOKEN, KEYS

CONTEXTUAL, OF = 10, 64

Array = npt.NDArray[np.floating[Any]]


def contextual_count(keep: int) -> int:
    """Return how many of ``keep`` tokens are contextual; at least one is not."""
    return round(keep * CONTEXTUAL / OF)


def visionzip_picks(
    tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array, keys: Array, cls_token: Array
) -> Indices:
    """Return what each kept token stands for, in the order of the kept tokens."""
    require_rows(valid, keep)
    contextual = contextual_count(keep)
    dominant = keep - contextual - 1
    chosen = np.sort(top_picks(cls_attention, valid, dominant)) if dominant else np.empty(0, np.int64)
    rest = without(valid, chosen)
    left = np.flatnonzero(rest)
    targets = left[np.arange(contextual) * (len(left) // contextual)] if contextual else left[:0]
    return np.concatenate([[NO_ROW], chosen, targets]).astype(np.int64)


def visionzip_merge(
    tokens: Tokens, valid: Valid, picks: Indices, *, cls_attention: Array, keys: Array, cls_token: Array
) -> Tokens:
    """Return the kept tokens [K, D]."""
    x = np.asarray(tokens, dtype=np.float32)
    contextual = contextual_count(len(picks))
    dominant, targets = picks[1 : len(picks) - contextual], picks[len(picks) - contextual :]
    parts = [np.asarray(cls_token, np.float32), x[dominant]]
    if contextual:
        joins = without(valid, picks[1:])
        unit = keys / np.maximum(np.sqrt(np.sum(keys * keys, axis=-1, keepdims=True)), np.float32(TINY))
        nearest = np.argmax(unit @ unit[targets].T, axis=1)
        member = (nearest[:, None] == np.arange(contextual)) & joins[:, None]
        total = member.astype(np.float32).T @ x
        count = np.maximum(member.sum(axis=0, dtype=np.float32), np.float32(1))
        parts.append(x[targets] + total / count[:, None])
    return np.concatenate(parts).astype(tokens.dtype)


def write_visionzip(
    ops: Ops,
    tokens: Any,
    valid: Any,
    candidates: int,
    keep: int,
    *,
    cls_attention: Any,
    keys: Any,
    cls_token: Any,
) -> Any:
    """Write the picks: int64 [b, K]."""
    contextual = contextual_count(keep)
    dominant = keep - contextual - 1
    groups, rest = [write_no_row(ops, valid)], valid
    if dominant:
        chosen = write_ascending(ops, write_top(ops, cls_attention, valid, dominant), dominant)
        rest = write_without(ops, valid, chosen, candidates)
        groups.append(chosen)
    if contextual:
        left = ops.op("ReduceSum", ops.cast(rest, "int64"), ops.constant([1]), keepdims=1)
        stride = ops.op("Div", left, ops.constant(contextual))
        places = ops.op("Mul", ops.constant(np.arange(contextual)[None]), stride)
        groups.append(write_rows_at(ops, rest, ops.cast(places, "float32")))
    return write_joined(ops, groups)


def write_merge(
    ops: Ops,
    tokens: Any,
    valid: Any,
    candidates: int,
    keep: int,
    picks: Any,
    *,
    cls_attention: Any,
    keys: Any,
    cls_token: Any,
) -> Any:
    """Write the kept tokens, float32 [b, K, D].

    ::

        keys ─► cosine to the targets' keys ─► ArgMax ─► one-hot, of those that join ─► MatMul ─► mean ─► + target
    """
    x = ops.cast(tokens, "float32")
    contextual = contextual_count(keep)
    parts = [ops.cast(cls_token, "float32")]
    if keep - contextual > 1:
        parts.append(write_rows(ops, x, write_columns(ops, picks, 1, keep - contextual)))
    if contextual:
        targets = write_columns(ops, picks, keep - contextual, keep)
        joins = write_without(ops, valid, picks, candidates)
        squares = ops.op("ReduceSum", ops.op("Mul", keys, keys), ops.constant([2]), keepdims=1)
        unit = ops.op("Div", keys, ops.op("Max", ops.op("Sqrt", squares), ops.constant(TINY, "float32")))
        centres = ops.op("Transpose", write_rows(ops, unit, targets), perm=[0, 2, 1])
        nearest = ops.op("ArgMax", ops.op("MatMul", unit, centres), axis=2, keepdims=1)
        same = ops.op("Equal", nearest, ops.constant(np.arange(contextual)))
        member = ops.cast(ops.op("And", same, ops.op("Unsqueeze", joins, ops.constant([2]))), "float32")
        total = ops.op("MatMul", ops.op("Transpose", member, perm=[0, 2, 1]), x)
        count = ops.op("ReduceSum", member, ops.constant([1]), keepdims=0)
        count = ops.op("Max", count, ops.constant(1.0, "float32"))
        mean = ops.op("Div", total, ops.op("Unsqueeze", count, ops.constant([2])))
        parts.append(ops.op("Add", write_rows(ops, x, targets), mean))
    return write_joined(ops, parts)


VISIONZIP = Selector(
    name="visionzip",
    op_type="DominantContextual",
    citation="Yang et al., VisionZip, CVPR 2025, arXiv 2412.04467",
    picks=visionzip_picks,
    body=write_visionzip,
    signals=(CLS_ATTENTION, KEYS, CLS_TOKEN),
    parameters={"contextual": CONTEXTUAL, "of": OF},
    merge=Merge(visionzip_merge, write_merge),
    deviations=(
        "Tokens are merged after the projector; the paper merges before it.",
        "The share of contextual tokens is that of the paper's 54 + 10 at every budget.",
    ),
)
"""Dominant tokens by attention, the rest merged into contextual ones."""
