"""Rounding to few bits: every value within half a step, whatever the weights look like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from divprune_edge.export.quantise import INT4, INT4_HALF, INT8, INT8_PAIRS, Levels, dequantise, quantise

levels = pytest.mark.parametrize("levels", [INT4, INT4_HALF, INT8, INT8_PAIRS])


def pair_sums(values: np.ndarray) -> np.ndarray:
    """What two neighbours are together where they have one sign, or the larger of them."""
    pairs = values[..., : values.shape[-1] // 2 * 2].reshape(*values.shape[:-1], -1, 2).astype(np.float64)
    return np.maximum(np.maximum(pairs, 0).sum(axis=-1), -np.minimum(pairs, 0).sum(axis=-1))


@levels
@settings(max_examples=50, deadline=None)
@given(
    weight=arrays(np.float32, (5, 8), elements=st.floats(-1000, 1000, width=32)),
    group=st.sampled_from([4, 8]),
)
def test_within_half_a_step(levels: Levels, weight: np.ndarray, group: int) -> None:
    values, scales = quantise(weight, group, levels)
    assert values.dtype == np.int8 and scales.shape == (5, 8 // group)
    assert values.min() >= levels.low and values.max() <= levels.high
    assert (scales > 0).all()
    groups = weight.reshape(5, -1, group)
    peak = np.abs(groups).max(axis=-1, keepdims=True)
    step = np.maximum(peak / levels.reach, pair_sums(groups).max(axis=-1, keepdims=True) / levels.pair)
    error = np.abs(dequantise(values, scales) - weight).reshape(5, -1, group)
    # A float16 scale is the next number of its type: 2**-10 more at most, or where they lie densest 2**-24.
    gap = 2.0**-24 if levels is INT4_HALF else 1e-37
    assert (error <= step / 2 * 1.001 + gap).all()


@levels
def test_many_rows_are_the_same_as_one_at_a_time(levels: Levels) -> None:
    weight = np.random.default_rng(0).standard_normal((150, 32)).astype(np.float32)
    values, scales = quantise(weight, 8, levels)
    for i in (0, 63, 64, 149):
        one, its = quantise(weight[i : i + 1], 8, levels)
        assert (one[0] == values[i]).all() and (its[0] == scales[i]).all()


def test_scales_are_numbers_of_their_type() -> None:
    """Rounded up: the largest value of a group is at most as far from a level as any other."""
    weight = (
        np.random.default_rng(1).standard_normal((40, 32)).astype(np.float32)
        * 10.0 ** np.arange(-20, 20)[:, None]
        / 1e10
    )
    weight[25:] = 0
    _, scales = quantise(weight, 8, INT4_HALF)
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert (scales > 0).all()
    assert (np.abs(weight.reshape(40, 4, 8)).max(axis=-1) <= scales * INT4_HALF.reach).all()


def test_a_group_of_zeros_stays_zero() -> None:
    values, scales = quantise(np.zeros((2, 8), np.float16), 4, INT4)
    assert not values.any() and (scales > 0).all()


@settings(max_examples=100, deadline=None)
@given(weight=arrays(np.float32, (3, 9), elements=st.floats(-1, 1, width=32)))
def test_pairs_of_products_fit_sixteen_bits(weight: np.ndarray) -> None:
    values, _ = quantise(weight, 9, INT8_PAIRS)
    assert 255 * pair_sums(values).max(initial=0) < 2**15
    assert np.abs(values.astype(int)).max() <= 127


def test_pairs_on_the_bound_are_rounded_to_it() -> None:
    # Sums of 128 steps, with every fraction: two roundings up must not make 129.
    first = np.linspace(1, 127, 10001, dtype=np.float32)
    weight = np.stack([first, 128 - first], axis=1).reshape(1, -1)
    values, scales = quantise(np.concatenate([weight, -weight]), weight.shape[1], INT8_PAIRS)
    assert pair_sums(values).max() == 128
    assert (scales < 1.001).all()


def test_steps_are_finer_than_half_of_the_range_would_give() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    _, scales = quantise(weight, 512, INT8_PAIRS)
    halved = np.abs(weight).max(axis=1) / 64
    assert np.median(scales[:, 0] / halved) < 0.75
