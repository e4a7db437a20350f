"""Weights in few bits: symmetric, to the nearest level, one scale for each group of a row.

A level more or less is the same to every scheme here, so one function serves them all. Each value ends within
half a step of where it was, and that is what verification holds an exported weight to.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.arrays import widen


@dataclass(frozen=True)
class Levels:
    """Integers ``low`` … ``high``; a step is the group's largest absolute value divided by ``reach``.

    Steps are numbers of type ``scales``, rounded up, so that the largest value stays within reach. ``pair`` bounds
    what two neighbours (2k, 2k + 1) of one sign may be together, in steps.
    """

    low: int
    high: int
    reach: float
    scales: str = "float32"
    pair: float = inf


# One more level would need a zero point. A peak of 7.5 steps is rounded to 8 or clipped to 7: half a step off.
INT4 = Levels(-8, 7, 7.5)
INT4_HALF = Levels(-8, 7, 7.5, "float16")
INT8 = Levels(-128, 127, 127.5)
# Kernels for AVX2 add the products of two neighbours (2k, 2k + 1) with unsigned 8-bit activations in 16 bits, and
# saturate without a word: 255 · 128 = 32640 is the most that fits. A weight may be as large as 127 where its
# neighbour has the other sign or is small; holding each to 64 would make steps half again as wide.
# A little less than 128, so that two roundings up never make 129.
INT8_PAIRS = Levels(-127, 127, 127.0, pair=127.99)

# Rows worked on at a time: bounds the float32 copy, and stays in the caches.
_STRIP = 64


def quantise(
    weight: npt.NDArray[Any], group: int, levels: Levels
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return int8 [out, in] and scales float32 [out, in / group] of a weight [out, in].

    The scale of a group of zeros is the smallest normal number, not zero: some runtimes require it to be
    positive.
    """
    out, inner = weight.shape
    values = np.empty((out, inner), np.int8)
    scales = np.empty((out, inner // group), np.float32)
    for start in range(0, out, _STRIP):
        rows = widen(weight[start : start + _STRIP]).reshape(-1, inner // group, group)
        scale = steps(rows, levels)
        rows /= scale[..., None]
        np.rint(rows, out=rows)
        np.clip(rows, levels.low, levels.high, out=rows)
        values[start : start + _STRIP] = rows.reshape(-1, inner)
        scales[start : start + _STRIP] = scale
    return values, scales


def steps(groups: npt.NDArray[np.float32], levels: Levels) -> npt.NDArray[np.float32]:
    """Return the step of each group, float32 [...], of weights [..., group]."""
    peak = np.abs(groups).max(axis=-1)
    scale: npt.NDArray[np.float32] = np.maximum(peak / np.float32(levels.reach), _TINY)
    if levels.pair < inf:
        scale = np.maximum(scale, _largest_pair(groups) / np.float32(levels.pair))
    return _rounded_up(scale) if levels.scales == "float16" else scale


def _largest_pair(groups: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest sum of two neighbours of one sign, float32 [...]; an odd one at the end has none."""
    first = groups[..., : groups.shape[-1] // 2 * 2 : 2]
    second = groups[..., 1::2]
    above = np.maximum(first, 0) + np.maximum(second, 0)
    below = np.minimum(first, 0) + np.minimum(second, 0)
    largest: npt.NDArray[np.float32] = np.maximum(
        above.max(axis=-1, initial=0), -below.min(axis=-1, initial=0)
    )
    return largest


def _rounded_up(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the next float16 of positive numbers, as float32; beyond 65504 that is infinite."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    above = np.where(half.astype(np.float32) < values, np.nextafter(half, np.float16(np.inf)), half)
    result: npt.NDArray[np.float32] = above.astype(np.float32)
    return result


def dequantise(values: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 [out, in] of int8 [out, in] and scales [out, in / group]."""
    out, inner = values.shape
    groups = values.reshape(out, scales.shape[1], -1).astype(np.float32)
    groups *= scales[..., None]
    return groups.reshape(out, inner)


_TINY = np.finfo(np.float32).tiny
