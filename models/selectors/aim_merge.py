"""AIM, its merging stage: halve the tokens by merging like ones, until K are left.

Zhong et al.: "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", ICCV 2025, arXiv 2412.03248,
which merges as ToMe does (Bolya et al., ICLR 2023). One round, of n tokens in raster order:

1. each token at an even place looks for the most similar one at an odd place, by cosine;
2. the ``min(n / 2, n - K)`` most similar of them join the token that they found, which becomes the mean of itself and
   of all that joined.

A kept token stands for the place of the one that others joined.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.merging import rounded_cosines, write_rounded_cosines, write_rows
from divprune_edge.models.selectors.ranking import LOWEST, write_positions
from divprune_edge.models.selectors.selector import Indices, Merge, Selector, Tokens, Valid, require_rows

Array = npt.NDArray[np.float32]


def rounds(candidates: int, keep: int) -> int:
    """Return how often N tokens have to be halved until at most K are left."""
    return ((candidates - 1) // keep).bit_length()


def aim_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the places of the kept tokens, ascending."""
    return _merged(tokens, valid, keep)[1]


def aim_merge(tokens: Tokens, valid: Valid, picks: Indices) -> Tokens:
    """Return the kept tokens [K, D]."""
    kept: Tokens = _merged(tokens, valid, len(picks))[0][picks].astype(tokens.dtype)
    return kept


def _merged(tokens: Tokens, valid: Valid, keep: int) -> tuple[Array, Indices]:
    require_rows(valid, keep)
    alive = valid.copy()
    x = np.where(valid[:, None], np.asarray(tokens, np.float32), np.float32(0))
    for _ in range(rounds(valid.size, keep)):
        place = np.cumsum(alive) - 1
        even, odd = alive & (place % 2 == 0), alive & (place % 2 == 1)
        similar = np.where(odd[None, :], rounded_cosines(x, x), np.float32(LOWEST))
        best = np.where(even, similar.max(axis=1), np.float32(LOWEST))
        count = min(alive.sum() // 2, alive.sum() - keep)
        joins = np.argsort(-best, kind="stable")[:count]
        member = np.zeros((valid.size, valid.size), np.float32)
        member[joins, similar[joins].argmax(axis=1)] = 1
        x = (x + member.T @ x) / (1 + member.sum(axis=0))[:, None]
        alive[joins] = False
    return x, np.flatnonzero(alive)


def write_aim(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the picks: int64 [b, K]."""
    alive = _write_merged(ops, tokens, valid, candidates, keep)[1]
    places = ops.op("Where", alive, ops.constant(np.arange(candidates)), ops.constant(candidates))
    return ops.ops("TopK", places, ops.constant([keep]), axis=1, largest=0, sorted=1, outputs=2)[0]


def write_merge(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, picks: Any) -> Any:
    """Write the kept tokens, float32 [b, K, D]. The rounds are written again: runtimes share equal nodes."""
    return write_rows(ops, _write_merged(ops, tokens, valid, candidates, keep)[0], picks)


def _write_merged(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> tuple[Any, Any]:
    """Write all rounds: merged tokens [b, N, D], and bool [b, N], which of them are left."""
    zero, lowest = ops.constant(0.0, "float32"), ops.constant(LOWEST, "float32")
    index, column = ops.constant(np.arange(candidates)), ops.constant(np.arange(candidates)[:, None])
    x = ops.op("Where", ops.op("Unsqueeze", valid, ops.constant([2])), ops.cast(tokens, "float32"), zero)
    alive = valid
    for _ in range(rounds(candidates, keep)):
        half = ops.op("Div", write_positions(ops, alive), ops.constant(2.0, "float32"))
        at_even = ops.op("Equal", ops.op("Floor", half), half)
        even, odd = ops.op("And", alive, at_even), ops.op("And", alive, ops.op("Not", at_even))
        cosines = write_rounded_cosines(ops, x, x)
        similar = ops.op("Where", ops.op("Unsqueeze", odd, ops.constant([1])), cosines, lowest)
        best = ops.op("ReduceMax", similar, ops.constant([2]), keepdims=0)
        best = ops.op("Where", even, best, lowest)
        left = ops.op("ReduceSum", ops.cast(alive, "float32"), ops.constant([1]), keepdims=1)
        count = ops.op(
            "Min",
            ops.op("Floor", ops.op("Div", left, ops.constant(2.0, "float32"))),
            ops.op("Sub", left, ops.constant(float(keep), "float32")),
        )
        # The rank of a row by its best cosine: how many come before it.
        mine, other = (ops.op("Unsqueeze", best, ops.constant([axis])) for axis in (2, 1))
        tie = ops.op("And", ops.op("Equal", other, mine), ops.op("Less", index, column))
        before = ops.cast(ops.op("Or", ops.op("Greater", other, mine), tie), "float32")
        joins = ops.op("Less", ops.op("ReduceSum", before, ops.constant([2]), keepdims=0), count)
        target = ops.op("Equal", ops.op("ArgMax", similar, axis=2, keepdims=1), index)
        member = ops.cast(ops.op("And", target, ops.op("Unsqueeze", joins, ops.constant([2]))), "float32")
        turned = ops.op("Transpose", member, perm=[0, 2, 1])
        size = ops.op("ReduceSum", turned, ops.constant([2]), keepdims=1)
        x = ops.op("Add", x, ops.op("MatMul", turned, x))
        x = ops.op("Div", x, ops.op("Add", size, ops.constant(1.0, "float32")))
        alive = ops.op("And", alive, ops.op("Not", joins))
    return x, alive


AIM_MERGE = Selector(
    name="aim-merge",
    op_type="BipartiteMerging",
    citation="Zhong et al., AIM, ICCV 2025, arXiv 2412.03248, merging stage",
    picks=aim_picks,
    body=write_aim,
    merge=Merge(aim_merge, write_merge),
    deviations=(
        "Likeness is that of projected tokens, as for clips; for images the paper compares keys.",
        "Tokens of all frames or tiles may join; the paper merges within a frame.",
        "Rounds halve until K are left, in raster order; the paper keeps 288, 144 and 72 of 576, first those that "
        "found nobody.",
    ),
)
"""Token merging in rounds."""
