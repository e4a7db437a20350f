"""Quota: parts of a clip get rows by how much they add, each spreads its own evenly.

After Luo et al.: "QuoTA: Query-oriented Token Assignment via CoT Query Decouple for Long Video Comprehension", 2025,
arXiv 2503.08689, whose frames get rows by a second model's opinion of them, in a total that does not change. Here 16
runs of consecutive rows stand for frames, as HoloV's crops do. With d the distance ``1 - cos`` of a row to the nearest
row of another run:

1. a run's weight is the mean of d over its rows; run p gets ``floor(w_p K)`` rows, w_p its share of the weights, and
   what is left over goes, one each, to the runs with the largest shares;
2. a run keeps its rows at the middles of as many equal parts; what a run of too few rows leaves over goes to the rows
   with the largest d.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.divprune import cosine_distances, write_distances
from divprune_edge.models.selectors.holov import crop_members, crop_shares, write_shares
from divprune_edge.models.selectors.ranking import top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, require_rows

RUNS = 16

# Above every distance, which is at most 2.
_FAR, _WITHIN = 4.0, 8.0

# Distances are rounded to this grid, so that rows that are alike tie whatever the order of summing.
_GRID = 2.0**12

Array = npt.NDArray[np.float32]


def novelty(tokens: Tokens, valid: Valid) -> Array:
    """Return float32 [N]: how far each row is from the nearest valid row of another run, rounded; 0 where none is."""
    members = crop_members(valid.size)
    apart = (members.T.astype(np.float32) @ members) == 0
    nearest = np.where(apart & valid, cosine_distances(tokens), np.float32(_FAR)).min(axis=1)
    nearest = np.where(nearest > 2.5, np.float32(0), nearest)
    rounded: Array = np.round(np.maximum(nearest, 0) * np.float32(_GRID)) / np.float32(_GRID)
    return rounded


def quota_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the evenly spread rows of each run's quota, then the most different of the rest."""
    require_rows(valid, keep)
    members = crop_members(valid.size)
    inside = (members & valid).astype(np.float32)
    new = novelty(tokens, valid)
    count = inside.sum(axis=1)
    weight = (inside @ new) / np.maximum(count, 1) + np.where(count > 0, np.float32(1e-6), np.float32(0))
    shares = crop_shares(weight.astype(np.float32), keep).astype(np.float32)
    run = members.argmax(axis=0)
    rank = (np.cumsum(inside, axis=1) - inside)[run, np.arange(valid.size)]
    share, rows = shares[run], np.maximum(count[run], 1)
    # A row is at the middle of a part if a multiple of its run's count lies in its stretch, shifted by half a part.
    within = _steps(rank + 1, share, rows) > _steps(rank, share, rows)
    return top_picks(np.where(within, new + np.float32(_WITHIN), new), valid, keep)


def _steps(rank: Array, share: Array, rows: Array) -> Array:
    """How many of ``share`` evenly spread rows of a run come before its row number ``rank``."""
    steps: Array = np.floor((rank * share + np.floor(rows / np.float32(2))) / rows)
    return steps


def write_quota(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the same: "among the evenly spread rows of its run" as a score, so that no step has a dynamic size."""
    one, zero = ops.constant(1.0, "float32"), ops.constant(0.0, "float32")
    members = crop_members(candidates)
    table = ops.constant(members.astype(np.float32), "float32")
    new = _write_novelty(ops, tokens, valid, members)
    inside = ops.op("Mul", table, ops.op("Unsqueeze", ops.cast(valid, "float32"), ops.constant([1])))
    count = ops.op("ReduceSum", inside, ops.constant([2]), keepdims=0)
    summed = ops.op(
        "Squeeze", ops.op("MatMul", inside, ops.op("Unsqueeze", new, ops.constant([2]))), ops.constant([2])
    )
    some = ops.op("Where", ops.op("Greater", count, zero), ops.constant(1e-6, "float32"), zero)
    weight = ops.op("Add", ops.op("Div", summed, ops.op("Max", count, one)), some)

    def of_rows(x: Any) -> Any:
        """[b, P] to [b, N]: the value of each row's run."""
        return ops.op(
            "Squeeze",
            ops.op("MatMul", ops.op("Unsqueeze", x, ops.constant([1])), table),
            ops.constant([1]),
        )

    share = of_rows(write_shares(ops, weight, keep))
    rows = ops.op("Max", of_rows(count), one)
    before = ops.op("Sub", ops.op("CumSum", inside, ops.constant(2)), inside)
    rank = ops.op("ReduceSum", ops.op("Mul", before, table), ops.constant([1]), keepdims=0)
    half = ops.op("Floor", ops.op("Div", rows, ops.constant(2.0, "float32")))

    def steps(rank: Any) -> Any:
        return ops.op("Floor", ops.op("Div", ops.op("Add", ops.op("Mul", rank, share), half), rows))

    within = ops.op("Greater", steps(ops.op("Add", rank, one)), steps(rank))
    raised = ops.op("Add", new, ops.constant(_WITHIN, "float32"))
    scores = ops.op("Where", within, raised, new)
    return write_ascending(ops, write_top(ops, scores, valid, keep), keep)


def _write_novelty(ops: Ops, tokens: Any, valid: Any, members: npt.NDArray[np.bool_]) -> Any:
    """Write :func:`novelty`: float32 [b, N]."""
    far, zero, grid = (ops.constant(x, "float32") for x in (_FAR, 0.0, _GRID))
    apart = ops.constant((members.T.astype(np.float32) @ members) == 0, "bool")
    counts = ops.op("And", apart, ops.op("Unsqueeze", valid, ops.constant([1])))
    distances = ops.op("Where", counts, write_distances(ops, tokens), far)
    nearest = ops.op("ReduceMin", distances, ops.constant([2]), keepdims=0)
    nearest = ops.op("Where", ops.op("Greater", nearest, ops.constant(2.5, "float32")), zero, nearest)
    return ops.op("Div", ops.op("Round", ops.op("Mul", ops.op("Max", nearest, zero), grid)), grid)


QUOTA = Selector(
    name="quota",
    op_type="QuotaOfRuns",
    citation="after Luo et al., QuoTA, 2025, arXiv 2503.08689",
    picks=quota_picks,
    body=write_quota,
    parameters={"runs": RUNS},
    deviations=(
        "Weights come from the image alone; the paper asks a second model about every frame.",
        "16 runs of consecutive rows stand for frames, whose number a selector does not see.",
        "A run keeps evenly spread rows, one of the paper's variants; its default shrinks each frame to its quota.",
    ),
)
"""Rows for each part of a clip by what it adds."""
