"""ApET: keep what a few basis tokens explain least, and merge the rest into it.

Ma et al.: "ApET: Approximation-Error Guided Token Compression for Efficient VLMs", CVPR 2026, arXiv 2602.19870.

1. basis: 10 tokens by farthest point sampling, in Euclidean distance;
2. error: the length of what is left of a token when its best linear approximation by the basis is taken away;
3. kept are the basis and the tokens of the largest errors; every other one joins the kept token of the most similar
   direction, which becomes the mean of itself and of those that joined.

The approximation is a Gram-Schmidt step for each basis token on the matrix of inner products, as the incremental
Cholesky factorisation of CDPruner: no linear system is solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.greedy import write_loop
from divprune_edge.models.selectors.merging import join_nearest, write_join_nearest
from divprune_edge.models.selectors.ranking import (
    LOWEST,
    top_picks,
    write_ascending,
    write_top,
    write_without,
)
from divprune_edge.models.selectors.selector import (
    Indices,
    Merge,
    Selector,
    Tokens,
    Valid,
    Values,
    require_rows,
)

BASIS = 10
# Of the largest squared length: what is left of a basis token by rounding explains nothing more.
FLOOR = 1e-5

Array = npt.NDArray[np.float32]


def basis_count(keep: int) -> int:
    """Return how many of ``keep`` tokens are the basis: 10, or half of few."""
    return min(BASIS, max(1, keep // 2))


def apet_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the basis in order, then the tokens of the largest errors, largest first."""
    require_rows(valid, keep)
    x = np.where(valid[:, None], np.asarray(tokens, dtype=np.float32), 0)
    inner = x @ x.T
    lengths = inner.diagonal().copy()
    floor = np.float32(FLOOR) * lengths.max()
    # The origin is the first point: then the longest token is the farthest.
    apart, error, free = lengths.copy(), lengths.copy(), valid.copy()
    factors = np.zeros((basis_count(keep), valid.size), np.float32)
    basis = []
    for t in range(basis_count(keep)):
        pick = int(np.argmax(np.where(free, apart, LOWEST)))
        basis.append(pick)
        free[pick] = False
        apart = np.minimum(apart, np.maximum(lengths + lengths[pick] - 2 * inner[pick], 0))
        rest = inner[pick] - factors[:, pick] @ factors
        live = error[pick] > floor
        factors[t] = rest / np.sqrt(np.maximum(error[pick], floor)) if live else np.float32(0)
        error = error - factors[t] * factors[t]
    others = top_picks(error, free, keep - len(basis)) if keep > len(basis) else np.empty(0, np.int64)
    return np.concatenate([basis, others]).astype(np.int64)


def write_apet(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the same: a Loop over the basis that carries distances, errors and factors [b, M, N]."""
    count = basis_count(keep)
    zero, lowest = ops.constant(0.0, "float32"), ops.constant(LOWEST, "float32")
    x = ops.op("Where", ops.op("Unsqueeze", valid, ops.constant([2])), ops.cast(tokens, "float32"), zero)
    inner_products = ops.op("MatMul", x, ops.op("Transpose", x, perm=[0, 2, 1]))
    diagonal = ops.op("Mul", inner_products, ops.constant(np.eye(candidates), "float32"))
    lengths = ops.op("ReduceSum", diagonal, ops.constant([2]), keepdims=0)
    longest = ops.op("ReduceMax", lengths, ops.constant([1]), keepdims=1)
    floor = ops.op("Mul", longest, ops.constant(FLOOR, "float32"))
    rows, steps = ops.constant(np.arange(candidates)), ops.constant(np.arange(count)[:, None])
    batch = ops.op("Shape", valid, start=0, end=1)
    factors = ops.op("Expand", zero, ops.op("Concat", batch, ops.constant([count, candidates]), axis=0))

    def step(g: Ops, carried: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        apart, error, factors, taken, number = carried
        pick = g.op("ArgMax", g.op("Where", taken, lowest, apart), axis=1, keepdims=1)

        def picked(values: Any) -> Any:
            return g.op("GatherND", values, pick, batch_dims=1)

        def of_pick(values: Any) -> Any:
            """[b, N] to [b, 1]."""
            return g.op("Unsqueeze", picked(values), ops.constant([1]))

        line = picked(inner_products)
        square = g.op("Sub", g.op("Add", lengths, of_pick(lengths)), g.op("Add", line, line))
        apart = g.op("Min", apart, g.op("Max", square, zero))
        turned = g.op("Transpose", factors, perm=[0, 2, 1])
        known = g.op("MatMul", g.op("Unsqueeze", picked(turned), ops.constant([1])), factors)
        rest = g.op("Sub", line, g.op("Squeeze", known, ops.constant([1])))
        left = of_pick(error)
        new = g.op(
            "Div", rest, g.op("Sqrt", g.op("Max", left, g.op("Max", floor, ops.constant(1e-30, "float32"))))
        )
        new = g.op("Where", g.op("Greater", left, floor), new, zero)
        place = g.op("Equal", steps, number)
        factors = g.op("Where", place, g.op("Unsqueeze", new, ops.constant([1])), factors)
        error = g.op("Sub", error, g.op("Mul", new, new))
        taken = g.op("Or", taken, g.op("Equal", rows, pick))
        return [apart, error, factors, taken, g.op("Add", number, ops.constant(1))], [pick]

    start = [lengths, lengths, factors, ops.op("Not", valid), ops.op("Identity", ops.constant(0))]
    (_, error, *_), picks = write_loop(ops, count, start, step)
    if keep > count:
        free = write_without(ops, valid, picks, candidates)
        picks = ops.op("Concat", picks, write_top(ops, error, free, keep - count), axis=1)
    return write_ascending(ops, picks, keep)


def _values(tokens: Tokens, valid: Valid, keep: int) -> Values:
    x = np.where(valid[:, None], np.asarray(tokens, np.float64), 0)
    lengths = np.square(x).sum(axis=1)
    count = basis_count(keep)

    def value(picks: Sequence[int]) -> npt.NDArray[np.float64]:
        basis = x[list(picks[:count])]
        if len(picks) < count:
            apart = np.square(x[:, None] - basis[None]).sum(axis=2).min(axis=1, initial=np.inf)
            return np.asarray(np.minimum(lengths, apart))
        # Directions that are rounding explain nothing, as in the float32 forms.
        _, sizes, directions = np.linalg.svd(basis, full_matrices=False)
        used = directions[sizes**2 > FLOOR * lengths.max()]
        return np.asarray(lengths - np.square(x @ used.T).sum(axis=1))

    return value


APET = Selector(
    name="apet",
    op_type="ApproximationError",
    citation="Ma et al., ApET, CVPR 2026, arXiv 2602.19870",
    # Sorted: for a merging method the order of the picks is that of the kept tokens.
    picks=lambda tokens, valid, keep: np.sort(apet_picks(tokens, valid, keep)),
    body=write_apet,
    parameters={"basis": BASIS},
    merge=Merge(join_nearest, write_join_nearest),
    deviations=(
        "One cut, on projected tokens; the paper cuts encoder features, and again at the language model's layer 16.",
        "Sampling starts at the token farthest from the origin; the released code starts at random.",
        "What is dropped may join a basis token as well.",
    ),
    values=_values,
)
"""Largest errors of an approximation by a few tokens."""
