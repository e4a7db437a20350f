"""What a selection is tested with and held to, whichever way it runs: emulated, on a GPU, as a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from divprune_edge.models.selectors.divprune import cosine_distances, max_min_select, replay_regret

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
REGRET = 1e-4


@dataclass(frozen=True)
class Case:
    """tokens [B, N, D], valid [B, N], K."""

    name: str
    tokens: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    keep: int

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.tokens.shape))}-{self.keep}-{self.tokens.dtype.name}"


def random_tokens(seed: int, shape: tuple[int, int, int], dtype: str) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def ragged(seed: int, batch: int, rows: int, keep: int) -> npt.NDArray[np.bool_]:
    """Each item has its own number of valid rows, at least ``keep``, anywhere in it."""
    rng = np.random.default_rng(seed)
    valid = np.zeros((batch, rows), np.bool_)
    for item in valid:
        item[rng.permutation(rows)[: rng.integers(keep, rows + 1)]] = True
    return valid


def special_cases(dtype: str) -> Iterator[Case]:
    """The cases that are easily got wrong, small."""
    everything = np.ones((1, 40), np.bool_)
    yield Case("one-row", random_tokens(0, (1, 1, 8), dtype), np.ones((1, 1), np.bool_), 1)
    yield Case("two-rows", random_tokens(1, (1, 2, 8), dtype), np.ones((1, 2), np.bool_), 1)
    yield Case("first-pick-only", random_tokens(2, (2, 40, 16), dtype), np.ones((2, 40), np.bool_), 1)
    yield Case("all-rows", random_tokens(3, (1, 40, 16), dtype), everything, 40)
    twins = random_tokens(4, (1, 20, 24), dtype)
    yield Case("duplicates", np.concatenate([twins, twins], axis=1), everything, 30)
    yield Case("all-equal", np.repeat(twins[:, :1], 40, axis=1), everything, 7)
    zeros = random_tokens(5, (1, 40, 16), dtype)
    zeros[:, [0, 7, 39]] = 0
    yield Case("zero-rows", zeros, everything, 9)
    yield Case("all-zero", np.zeros_like(zeros), everything, 5)
    yield Case("ragged", random_tokens(6, (5, 37, 32), dtype), ragged(6, 5, 37, 8), 8)
    few = np.zeros((1, 40), np.bool_)
    few[0, [3, 17, 38]] = True
    yield Case("as-few-valid-as-kept", random_tokens(7, (1, 40, 16), dtype), few, 3)
    yield Case("wide", random_tokens(8, (1, 33, 1096), dtype), np.ones((1, 33), np.bool_), 6)
    yield Case("several-tiles", random_tokens(9, (2, 150, 72), dtype), ragged(9, 2, 150, 20), 20)


def random_case(seed: int, dtype: str, rows: int = 60, width: int = 96, batch: int = 3) -> Case:
    """A case of random sizes up to the given ones."""
    rng = np.random.default_rng(seed)
    b, n, d = rng.integers(1, batch + 1), rng.integers(1, rows + 1), 8 * rng.integers(1, width // 8 + 1)
    keep = int(rng.integers(1, n + 1))
    tokens = random_tokens(seed, (int(b), int(n), int(d)), dtype)
    if n > 4 and rng.random() < 0.3:  # some rows twice
        tokens[:, rng.integers(0, n, n // 3)] = tokens[:, rng.integers(0, n, n // 3)]
    return Case(f"random-{seed}", tokens, ragged(seed, int(b), int(n), keep), keep)


def assert_max_min(case: Case, kept: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> None:
    """Hold a result to the reference: the same set, or one that max-min could have picked up to rounding."""
    assert_well_formed(case, kept, indices)
    for tokens, valid, chosen in zip(case.tokens, case.valid, indices, strict=True):
        if not np.array_equal(chosen, max_min_select(tokens, valid, case.keep)):
            assert replay_regret(cosine_distances(tokens), valid, chosen) <= REGRET, case


def assert_well_formed(case: Case, kept: npt.NDArray[Any], indices: npt.NDArray[np.int64]) -> None:
    for tokens, valid, rows, chosen in zip(case.tokens, case.valid, kept, indices, strict=True):
        assert chosen.shape == (case.keep,)
        assert np.all(np.diff(chosen) > 0), case
        assert np.all(valid[chosen]), case
        assert rows.tobytes() == tokens[chosen].tobytes(), case


def min_sum_picks(
    distances: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], seed: int, keep: int
) -> npt.NDArray[np.int64]:
    """The sum rule on a float32 [N, N] matrix, in pick order: argmin of summed cos is argmax of summed 1 - cos."""
    value = np.where(valid, np.float32(0), np.float32(-4))
    picks = [seed]
    for _ in range(keep - 1):
        value = np.where(value > -3, value + distances[picks[-1]], value)
        value[picks[-1]] = -8
        picks.append(int(np.argmax(value)))
    return np.array(picks, np.int64)


def min_sum_regret(
    tokens: npt.NDArray[Any], valid: npt.NDArray[np.bool_], seed: int, chosen: npt.NDArray[np.int64]
) -> float:
    """How far a set is from what the sum rule would have grown from ``seed``, in units of one distance."""
    distances = cosine_distances(tokens).astype(np.float64)
    value = np.where(valid, 0.0, -np.inf)
    inside = set(chosen.tolist()) - {seed}
    regret, last, taken = 0.0, seed, [seed]
    while inside:
        value = value + distances[last]
        value[taken] = -np.inf
        last = max(sorted(inside), key=lambda i: value[i])
        regret = max(regret, float(value.max() - value[last]) / len(taken))
        inside.remove(last)
        taken.append(last)
    return regret
