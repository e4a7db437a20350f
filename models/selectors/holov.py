"""HoloV: share the budget among crops of the image, then keep each crop's most attended tokens.

Zou et al.: "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
NeurIPS 2025, arXiv 2510.02912. Crops are 16 contiguous runs of tokens in raster order. With a the class token's
attention in the feature layer and S the cosines within a crop of n tokens, diagonal zero:

1. ``mu_i = sum_j S_ij / (n - 1)``, ``v_i = sum_j (S_ij - mu_i)^2 / (n - 1)``, v rescaled so that its mean over
   the image is that of a; ``score_i = a_i + 0.09 v_i``; a crop's score is the mean over its tokens;
2. crop p gets ``k_p = floor(w_p K)`` tokens, w_p its share of the scores; what is left over goes, one each, to the
   crops with the largest shares;
3. within a crop the k_p tokens with the largest a are kept, all of them where it has fewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import (
    cosine_similarities,
    top_picks,
    write_ascending,
    write_similarities,
    write_top,
)
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, require_rows
from divprune_edge.models.signals import CLS_ATTENTION

CROPS = 16
ALPHA = 0.09

# Shares of the budget are rounded to this grid, so that crops of equal score tie whatever the order of summing.
GRID = 2**12

# An attention is at most 1: a row within its crop's share comes before all others.
_WITHIN = 2.0

Array = npt.NDArray[np.float32]


def crop_members(candidates: int) -> npt.NDArray[np.bool_]:
    """Return bool [P, N]: which of the P contiguous crops each token lies in; their sizes differ by at most one."""
    crops = min(CROPS, candidates)
    crop = np.arange(candidates) * crops // candidates
    return np.asarray(crop[None, :] == np.arange(crops)[:, None])


def crop_scores(tokens: Tokens, valid: Valid, attention: Array) -> Array:
    """Return float32 [P]: the mean score of each crop's valid tokens, 0 for a crop without any."""
    members = crop_members(valid.size) & valid
    inside = members.astype(np.float32)
    pairs = (inside.T @ inside) * (np.float32(1) - np.eye(valid.size, dtype=np.float32))
    similar = cosine_similarities(tokens) * pairs
    # Each row has its own crop's n; the zero of the diagonal is one of the n terms of the variance.
    others = np.maximum(pairs.sum(axis=1), np.float32(1))
    mean = similar.sum(axis=1) / others
    span = inside.T @ inside
    variance = (np.square(similar - mean[:, None]) * span).sum(axis=1) / others
    count = np.float32(valid.sum())
    a = np.where(valid, attention, np.float32(0))
    v = np.where(valid, variance, np.float32(0))
    scale = (a.sum() / count) / np.maximum(v.sum() / count, np.float32(1e-12))
    score = a + np.float32(ALPHA) * v * scale
    result: Array = (inside @ score) / np.maximum(inside.sum(axis=1), np.float32(1))
    return result


def crop_shares(scores: Array, keep: int) -> npt.NDArray[np.int64]:
    """Return int64 [P]: how many tokens each crop gets, a total of K."""
    weights = np.round(scores / scores.sum() * np.float32(GRID)) / np.float32(GRID)
    shares: npt.NDArray[np.int64] = np.floor(weights * np.float32(keep)).astype(np.int64)
    best = np.argsort(-weights, kind="stable")
    shares[best[: max(0, keep - shares.sum())]] += 1
    return shares


def holov_picks(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: Array) -> Indices:
    """Return the tokens within their crops' shares by attention, then others where crops had too few."""
    require_rows(valid, keep)
    shares = crop_shares(crop_scores(tokens, valid, cls_attention), keep)
    members = crop_members(valid.size)
    crop = members.argmax(axis=0)
    a = cls_attention
    earlier = np.arange(valid.size)[None, :] < np.arange(valid.size)[:, None]
    before = (a[None, :] > a[:, None]) | ((a[None, :] == a[:, None]) & earlier)
    rank = (before & valid[None, :] & (crop[None, :] == crop[:, None])).sum(axis=1)
    return top_picks(np.where(rank < shares[crop], a + np.float32(_WITHIN), a), valid, keep)


def write_holov(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any) -> Any:
    """Write the same: "rank within the crop < its share" as a score, so that no step has a dynamic size."""
    members = ops.constant(crop_members(candidates).astype(np.float32), "float32")
    shares = write_shares(ops, _write_scores(ops, tokens, valid, candidates, members, cls_attention), keep)
    # [b, P] x [P, N]: the share of each token's crop.
    share = ops.op(
        "Squeeze",
        ops.op("MatMul", ops.op("Unsqueeze", shares, ops.constant([1])), members),
        ops.constant([1]),
    )
    row, column = (ops.op("Unsqueeze", cls_attention, ops.constant([axis])) for axis in (2, 1))
    index = np.arange(candidates)
    earlier = ops.constant(index[None, :] < index[:, None], "bool")
    tie = ops.op("And", ops.op("Equal", column, row), earlier)
    crop = crop_members(candidates).argmax(axis=0)
    same = ops.constant(crop[None, :] == crop[:, None], "bool")
    before = ops.op("And", ops.op("Or", ops.op("Greater", column, row), tie), same)
    before = ops.op("And", before, ops.op("Unsqueeze", valid, ops.constant([1])))
    rank = ops.op("ReduceSum", ops.cast(before, "float32"), ops.constant([2]), keepdims=0)
    raised = ops.op("Add", cls_attention, ops.constant(_WITHIN, "float32"))
    scores = ops.op("Where", ops.op("Less", rank, share), raised, cls_attention)
    return write_ascending(ops, write_top(ops, scores, valid, keep), keep)


def _write_scores(ops: Ops, tokens: Any, valid: Any, candidates: int, members: Any, attention: Any) -> Any:
    """Write :func:`crop_scores`: float32 [b, P]."""
    one, zero = ops.constant(1.0, "float32"), ops.constant(0.0, "float32")

    def total(x: Any, axis: int, keepdims: int = 0) -> Any:
        return ops.op("ReduceSum", x, ops.constant([axis]), keepdims=keepdims)

    inside = ops.op("Mul", members, ops.op("Unsqueeze", ops.cast(valid, "float32"), ops.constant([1])))
    span = ops.op("MatMul", ops.op("Transpose", inside, perm=[0, 2, 1]), inside)
    off_diagonal = ops.constant(1 - np.eye(candidates), "float32")
    pairs = ops.op("Mul", span, off_diagonal)
    similar = ops.op("Mul", write_similarities(ops, tokens), pairs)
    others = ops.op("Max", total(pairs, 2), one)
    mean = ops.op("Div", total(similar, 2), others)
    apart = ops.op("Sub", similar, ops.op("Unsqueeze", mean, ops.constant([2])))
    variance = ops.op("Div", total(ops.op("Mul", ops.op("Mul", apart, apart), span), 2), others)
    count = total(ops.cast(valid, "float32"), 1, 1)
    a, v = (ops.op("Where", valid, x, zero) for x in (attention, variance))
    average_a, average_v = (ops.op("Div", total(x, 1, 1), count) for x in (a, v))
    scale = ops.op("Div", average_a, ops.op("Max", average_v, ops.constant(1e-12, "float32")))
    score = ops.op("Add", a, ops.op("Mul", ops.op("Mul", ops.constant(ALPHA, "float32"), v), scale))
    summed = ops.op(
        "Squeeze", ops.op("MatMul", inside, ops.op("Unsqueeze", score, ops.constant([2]))), ops.constant([2])
    )
    return ops.op("Div", summed, ops.op("Max", total(inside, 2), one))


def write_shares(ops: Ops, scores: Any, keep: int) -> Any:
    """Write :func:`crop_shares`: float32 [b, P], whole numbers."""
    grid = ops.constant(float(GRID), "float32")
    weights = ops.op("Div", scores, ops.op("ReduceSum", scores, ops.constant([1]), keepdims=1))
    weights = ops.op("Div", ops.op("Round", ops.op("Mul", weights, grid)), grid)
    floors = ops.op("Floor", ops.op("Mul", weights, ops.constant(float(keep), "float32")))
    over = ops.op(
        "Sub",
        ops.constant(float(keep), "float32"),
        ops.op("ReduceSum", floors, ops.constant([1]), keepdims=1),
    )
    # The rank of a crop by weight: how many come before it.
    row, column = (ops.op("Unsqueeze", weights, ops.constant([axis])) for axis in (2, 1))
    crops = ops.op("Shape", weights, start=1, end=2)
    index = ops.op("Range", ops.constant(0), ops.op("Squeeze", crops, ops.constant([0])), ops.constant(1))
    earlier = ops.op("Less", index, ops.op("Unsqueeze", index, ops.constant([1])))
    before = ops.op(
        "Or", ops.op("Greater", column, row), ops.op("And", ops.op("Equal", column, row), earlier)
    )
    rank = ops.op("ReduceSum", ops.cast(before, "float32"), ops.constant([2]), keepdims=0)
    return ops.op("Add", floors, ops.cast(ops.op("Less", rank, over), "float32"))


HOLOV = Selector(
    name="holov",
    op_type="HolisticCrops",
    citation="Zou et al., HoloV, NeurIPS 2025, arXiv 2510.02912",
    picks=holov_picks,
    body=write_holov,
    signals=(CLS_ATTENTION,),
    parameters={"crops": CROPS, "alpha": ALPHA},
    deviations=(
        "Output in raster order; the released code orders a crop by attention.",
        "What a crop of too few tokens leaves over goes to the most attended of the rest; the released code pads with "
        "zeros.",
        "Variances are rescaled over the whole image; shares of the budget are rounded to 2^-12, so that equal crops "
        "tie.",
    ),
)
"""A budget per crop, the most attended tokens within each."""
