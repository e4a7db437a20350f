"""PruMerge with a fixed count: the most attended tokens, each with what lies near it, and one token for the rest.

Shang et al.: "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025, arXiv
2403.15388. With a the class token's attention:

1. K - 1 tokens are kept, those with the largest a;
2. each becomes ``x_i + sum_j a_j x_j`` over the 32 others with the most similar keys, kept or not;
3. one more token is ``sum_j a_j x_j`` over all that are dropped; it comes first, with the index -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.merging import (
    NO_ROW,
    nearest,
    others_only,
    rounded_cosines,
    write_nearest,
    write_no_row,
    write_others_only,
    write_rounded_cosines,
    write_rows,
)
from divprune_edge.models.selectors.ranking import (
    top_picks,
    without,
    write_ascending,
    write_columns,
    write_top,
    write_without,
)
from divprune_edge.models.selectors.selector import Indices, Merge, Selector, Tokens, Valid, require_rows
from divprune_edge.models.signals import CLS_ATTENTION, KEYS

NEIGHBOURS = 32

Array = npt.NDArray[np.float32]


def prumerge_picks(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array, keys: Array) -> Indices:
    """Return what each kept token stands for, in the order of the kept tokens."""
    require_rows(valid, keep)
    chosen = np.sort(top_picks(cls_attention, valid, keep - 1)) if keep > 1 else np.empty(0, np.int64)
    return np.concatenate([[NO_ROW], chosen]).astype(np.int64)


def prumerge_merge(
    tokens: Tokens, valid: Valid, picks: Indices, *, cls_attention: Array, keys: Array
) -> Tokens:
    """Return the kept tokens [K, D]."""
    chosen = picks[1:]
    dropped = without(valid, chosen)
    merged = gathered(tokens, valid, cls_attention, keys, chosen, valid)
    return np.concatenate([weighed(tokens, cls_attention, dropped), merged]).astype(tokens.dtype)


def weighed(tokens: Tokens, attention: Array, rows: Valid) -> Array:
    """Return float32 [1, D]: the sum of some rows, each times its attention."""
    weight = np.where(rows, attention, np.float32(0))
    total: Array = (weight @ np.asarray(tokens, np.float32))[None]
    return total


def gathered(
    tokens: Tokens, valid: Valid, attention: Array, keys: Array, centres: Indices, around: Valid
) -> Array:
    """Return float32 [k, D]: centres plus their neighbours by keys among the rows ``around``, times attention."""
    x = np.asarray(tokens, dtype=np.float32)
    similar = others_only(rounded_cosines(keys[centres], keys), centres, around)
    weight = np.where(nearest(similar, min(NEIGHBOURS, valid.size)) & around, attention, np.float32(0))
    weight[np.arange(len(centres)), centres] = 0
    total: Array = (x[centres] + weight @ x).astype(np.float32)
    return total


def write_prumerge(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any, keys: Any
) -> Any:
    """Write the picks: int64 [b, K]."""
    rest = write_no_row(ops, valid)
    if keep == 1:
        return rest
    chosen = write_ascending(ops, write_top(ops, cls_attention, valid, keep - 1), keep - 1)
    return ops.op("Concat", rest, chosen, axis=1)


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
) -> Any:
    """Write the kept tokens, float32 [b, K, D]."""
    dropped = write_without(ops, valid, picks, candidates)
    rest = write_weighed(ops, tokens, cls_attention, dropped)
    if keep == 1:
        return rest
    chosen = write_columns(ops, picks, 1, keep)
    merged = write_gathered(ops, tokens, cls_attention, keys, chosen, valid, candidates)
    return ops.op("Concat", rest, merged, axis=1)


def write_weighed(ops: Ops, tokens: Any, attention: Any, rows: Any) -> Any:
    """Write :func:`weighed`: float32 [b, 1, D]."""
    weight = ops.op("Where", rows, attention, ops.constant(0.0, "float32"))
    return ops.op("MatMul", ops.op("Unsqueeze", weight, ops.constant([1])), ops.cast(tokens, "float32"))


def write_gathered(
    ops: Ops, tokens: Any, attention: Any, keys: Any, centres: Any, around: Any, candidates: int
) -> Any:
    """Write :func:`gathered`: float32 [b, k, D]."""
    x = ops.cast(tokens, "float32")
    similar = write_rounded_cosines(ops, write_rows(ops, keys, centres), keys)
    similar = write_others_only(ops, similar, centres, around, candidates)
    near = write_nearest(ops, similar, min(NEIGHBOURS, candidates))
    counts = ops.op("And", near, ops.op("Unsqueeze", around, ops.constant([1])))
    own = ops.op(
        "Equal", ops.op("Unsqueeze", centres, ops.constant([2])), ops.constant(np.arange(candidates))
    )
    counts = ops.op("And", counts, ops.op("Not", own))
    row = ops.op("Unsqueeze", attention, ops.constant([1]))
    weight = ops.op("Where", counts, row, ops.constant(0.0, "float32"))
    return ops.op("Add", write_rows(ops, x, centres), ops.op("MatMul", weight, x))


PRUMERGE = Selector(
    name="prumerge",
    op_type="AttendedWithNeighbours",
    citation="Shang et al., PruMerge, ICCV 2025, arXiv 2403.15388",
    picks=prumerge_picks,
    body=write_prumerge,
    signals=(CLS_ATTENTION, KEYS),
    parameters={"neighbours": NEIGHBOURS},
    merge=Merge(prumerge_merge, write_merge),
    deviations=(
        "K is fixed; the paper keeps the outliers of attention, however many.",
        "Attention and keys are the feature layer's, mean over heads; the released code takes the next layer's, as "
        "one head.",
        "Tokens are merged after the projector, in raster order, not that of attention.",
    ),
)
"""The most attended tokens with their neighbours, and one for the rest."""
