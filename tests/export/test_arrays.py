"""Casts that are faster than NumPy's have to be exact, and a weight that is not finite has to be found."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from raising import refused

from divprune_edge.export.arrays import cast_weight, check_weight, transpose, widen


def test_every_finite_half_is_widened_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    for kind in (np.float16, ml_dtypes.bfloat16):
        halves = bits.view(kind)
        halves = halves[np.isfinite(halves.astype(np.float32))]
        wide = widen(halves.reshape(-1, 2))
        assert wide.shape == (len(halves) // 2, 2)
        assert (wide.reshape(-1).view(np.uint32) == halves.astype(np.float32).view(np.uint32)).all()
        assert not np.shares_memory(widen(halves.astype(np.float32)), halves)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 299_999])
def test_what_is_not_finite_is_found(kind: str, value: float, at: int) -> None:
    weight = np.full(300_000, np.finfo(np.float16).max, np.float32).astype(np.dtype(kind))
    assert check_weight("w", weight) is weight
    weight[at] = value
    with refused("weights-not-finite", "'w'"):
        check_weight("w", weight)
    with refused("weights-not-finite", "'w'"):
        cast_weight("w", weight, "float32")


@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (33, 70)])
def test_a_transpose_is_contiguous(shape: tuple[int, int]) -> None:
    matrix = np.arange(shape[0] * shape[1], dtype=np.int16).reshape(shape)
    result = transpose(matrix)
    assert (result == matrix.T).all()
    assert result.flags.c_contiguous
