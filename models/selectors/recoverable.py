"""Recoverable Compression, its image part with fixed counts: attended tokens, and centres that gather what is dropped.

Chen et al.: "Recoverable Compression: A Multimodal Vision Token Recovery Mechanism Guided by Text Information", AAAI
2025, arXiv 2409.01179. Of K tokens, ``round(10 K / 64)`` are centres and one stands for the rest:

1. attended: the best by the class token's attention;
2. centres: of what is left, the tokens whose keys are least like their 10 nearest;
3. each centre becomes itself plus the 32 dropped tokens with the most similar keys, times their attention;
4. one token is the sum of all dropped ones times their attention; it comes first, with the index -1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.merging import (
    NO_ROW,
    rounded_cosines,
    write_no_row,
    write_rounded_cosines,
    write_rows,
)
from divprune_edge.models.selectors.prumerge import (
    NEIGHBOURS,
    gathered,
    weighed,
    write_gathered,
    write_weighed,
)
from divprune_edge.models.selectors.ranking import (
    top_picks,
    without,
    write_ascending,
    write_columns,
    write_joined,
    write_top,
    write_without,
)
from divprune_edge.models.selectors.selector import Indices, Merge, Selector, Tokens, Valid, require_rows
from divprune_edge.models.selectors.visionzip import contextual_count
from divprune_edge.models.signals import CLS_ATTENTION, KEYS

LOCAL = 10

Array = npt.NDArray[np.float32]


def recoverable_picks(
    tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array, keys: Array
) -> Indices:
    """Return what each kept token stands for, in the order of the kept tokens."""
    require_rows(valid, keep)
    attended, centres = _parts(valid, keep, cls_attention, keys)
    return np.concatenate([[NO_ROW], np.sort([*attended, *centres])]).astype(np.int64)


def _parts(valid: Valid, keep: int, attention: Array, keys: Array) -> tuple[Indices, Indices]:
    count = contextual_count(keep)
    nothing = np.empty(0, np.int64)
    attended = top_picks(attention, valid, keep - count - 1) if keep > count + 1 else nothing
    rest = without(valid, attended)
    return attended, top_picks(lonely(keys, rest), rest, count) if count else nothing


def lonely(keys: Array, rest: Valid) -> Array:
    """Return float32 [N]: less the summed cosine of each row's key to those of its nearest other rows of ``rest``."""
    similar = rounded_cosines(keys, keys)
    similar = np.where(np.eye(rest.size, dtype=bool) | ~rest, np.float32(-1), similar)
    best = -np.sort(-similar, axis=1)[:, : min(LOCAL, rest.size)]
    total: Array = -best.sum(axis=1)
    return total


def recoverable_merge(
    tokens: Tokens, valid: Valid, picks: Indices, *, cls_attention: Array, keys: Array
) -> Tokens:
    """Return the kept tokens [K, D]."""
    chosen = picks[1:]
    dropped = without(valid, chosen)
    _, centres = _parts(valid, len(picks), cls_attention, keys)
    kept = np.where(
        np.isin(chosen, centres)[:, None],
        gathered(tokens, valid, cls_attention, keys, chosen, dropped),
        np.asarray(tokens, np.float32)[chosen],
    )
    return np.concatenate([weighed(tokens, cls_attention, dropped), kept]).astype(tokens.dtype)


def write_recoverable(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any, keys: Any
) -> Any:
    """Write the picks: int64 [b, K]."""
    rest = write_no_row(ops, valid)
    if keep == 1:
        return rest
    groups = _write_parts(ops, valid, candidates, keep, cls_attention, keys)
    chosen = write_joined(ops, groups)
    return ops.op("Concat", rest, write_ascending(ops, chosen, keep - 1), axis=1)


def _write_parts(ops: Ops, valid: Any, candidates: int, keep: int, attention: Any, keys: Any) -> list[Any]:
    """Write the attended tokens and the centres, as many of the two as there are; centres come last."""
    count = contextual_count(keep)
    groups, rest = [], valid
    if keep > count + 1:
        groups.append(write_top(ops, attention, valid, keep - count - 1))
        rest = write_without(ops, valid, groups[0], candidates)
    if count:
        groups.append(write_top(ops, _write_lonely(ops, keys, rest, candidates), rest, count))
    return groups


def _write_lonely(ops: Ops, keys: Any, rest: Any, candidates: int) -> Any:
    """Write :func:`lonely`: float32 [b, N]."""
    own = ops.constant(np.eye(candidates, dtype=bool), "bool")
    out = ops.op("Or", own, ops.op("Not", ops.op("Unsqueeze", rest, ops.constant([1]))))
    similar = ops.op("Where", out, ops.constant(-1.0, "float32"), write_rounded_cosines(ops, keys, keys))
    count = ops.constant([min(LOCAL, candidates)])
    best = ops.ops("TopK", similar, count, axis=2, largest=1, sorted=1, outputs=2)[0]
    return ops.op("Neg", ops.op("ReduceSum", best, ops.constant([2]), keepdims=0))


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
    kept = write_rows(ops, ops.cast(tokens, "float32"), chosen)
    if contextual_count(keep):
        centres = _write_parts(ops, valid, candidates, keep, cls_attention, keys)[-1]
        same = ops.op(
            "Equal",
            ops.op("Unsqueeze", chosen, ops.constant([2])),
            ops.op("Unsqueeze", centres, ops.constant([1])),
        )
        is_centre = ops.op("ReduceMax", ops.cast(same, "float32"), ops.constant([2]), keepdims=1)
        merged = write_gathered(ops, tokens, cls_attention, keys, chosen, dropped, candidates)
        kept = ops.op("Where", ops.op("Greater", is_centre, ops.constant(0.5, "float32")), merged, kept)
    return ops.op("Concat", rest, kept, axis=1)


RECOVERABLE = Selector(
    name="recoverable",
    op_type="AttendedAndCentres",
    citation="Chen et al., Recoverable Compression, AAAI 2025, arXiv 2409.01179",
    picks=recoverable_picks,
    body=write_recoverable,
    signals=(CLS_ATTENTION, KEYS),
    parameters={"neighbours": NEIGHBOURS, "local": LOCAL},
    merge=Merge(recoverable_merge, write_merge),
    deviations=(
        "The image part alone; the paper also recovers tokens that resemble the question, by CLIP's text tower.",
        "Counts are fixed, centres as many as VisionZip's contextual tokens; the paper counts local outliers.",
        "Centres are the tokens whose keys are least like their 10 nearest, in place of the largest local outlier "
        "factors.",
        "Attention and keys are the feature layer's, mean over heads; tokens are merged after the projector, in "
        "raster order.",
    ),
)
"""Attended tokens, centres with their neighbours, and one for the rest."""
