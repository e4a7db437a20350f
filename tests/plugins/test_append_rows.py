"""Appending rows to KV caches: the kernel's own source on the CPU, and the checks in front of it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from plugins_emulation import EMULATED, aligned
from raising import refused

from divprune_edge.plugins import abi

pytestmark = pytest.mark.xdist_group("emulated")

NULL, MISALIGNED, CACHES, ROWS, ROW_BYTES, STRIDE = 1, 7, 10, 11, 12, 13
GOOD: dict[str, int] = {
    "tensors": 4,
    "heads": 3,
    "rows": 2,
    "capacity": 8,
    "row_bytes": 32,
    "cache_stride": 768,
    "rows_stride": 192,
}


def up(size: int, multiple: int = 256) -> int:
    return -(-size // multiple) * multiple


def sizes_of(tensors: int, heads: int, rows: int, capacity: int, row_bytes: int) -> abi.Append:
    """Tensors start on 256 bytes, as a backend lays them out."""
    strides = up(heads * capacity * row_bytes), up(heads * rows * row_bytes)
    return abi.Append(tensors, heads, rows, capacity, row_bytes, 0, *strides)


def blocks(buffer: npt.NDArray[np.uint8], sizes: abi.Append, rows: int, stride: int) -> npt.NDArray[np.uint8]:
    """View a buffer as [tensors, heads, rows, row_bytes]."""
    used = sizes.heads * rows * sizes.row_bytes
    whole = buffer.reshape(sizes.tensors, stride)[:, :used]
    return whole.reshape(sizes.tensors, sizes.heads, rows, sizes.row_bytes)


def append(library: ctypes.CDLL, sizes: abi.Append, position: int) -> tuple[Any, Any, Any]:
    """Run the kernel on random bytes; return the caches before and after, and what should be there."""
    rng = np.random.default_rng(sizes.row_bytes + abs(position))
    cache = aligned(rng.integers(0, 256, sizes.tensors * sizes.cache_stride, dtype=np.uint8))
    rows = aligned(rng.integers(0, 256, sizes.tensors * sizes.rows_stride, dtype=np.uint8))
    before = cache.copy()
    wanted = cache.copy()
    into = blocks(wanted, sizes, sizes.capacity, sizes.cache_stride)
    new = blocks(rows, sizes, sizes.rows, sizes.rows_stride)
    if 0 <= position < sizes.capacity:
        room = min(sizes.rows, sizes.capacity - position)
        into[:, :, position : position + room] = new[:, :, :room]
    at = np.array([position], np.int64)
    abi.check(
        library,
        library.divprune_append_rows(sizes, rows.ctypes.data, cache.ctypes.data, at.ctypes.data, None),
    )
    return before, cache, wanted


@pytest.mark.parametrize("architecture", EMULATED)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 4), (6, 4, 1, 17, 40), (4, 2, 5, 9, 256), (64, 8, 1, 64, 16)])
def test_rows_land_where_the_position_says(
    emulated_libraries: dict[int, ctypes.CDLL], architecture: int, shape: tuple[int, ...]
) -> None:
    """One row as in decode, several as in prefill; rows of 16-byte vectors and of less."""
    sizes = sizes_of(*shape)
    for position in {0, (sizes.capacity - sizes.rows) // 2, sizes.capacity - sizes.rows}:
        before, found, wanted = append(emulated_libraries[architecture], sizes, position)
        assert np.array_equal(found, wanted)
        assert not np.array_equal(found, before)


@pytest.mark.parametrize("position", [-1, -(2**62), 8, 9, 2**62, 2**63 - 1])
def test_a_position_outside_writes_nothing(emulated: ctypes.CDLL, position: int) -> None:
    before, found, _ = append(emulated, sizes_of(2, 3, 2, 8, 32), position)
    assert np.array_equal(found, before)


def test_rows_beyond_the_capacity_are_left_out(emulated: ctypes.CDLL) -> None:
    before, found, wanted = append(emulated, sizes_of(2, 3, 4, 8, 32), 6)
    assert np.array_equal(found, wanted)
    assert not np.array_equal(found, before)


def test_the_order_of_threads_does_not_matter(emulated: ctypes.CDLL) -> None:
    results = []
    for schedule in (0, 1, 2):
        emulated.divprune_emulator_schedule(schedule)
        results.append(append(emulated, sizes_of(6, 4, 3, 17, 40), 5)[1].tobytes())
    assert len(set(results)) == 1


WRONG = [
    ({"tensors": 0}, CACHES),
    ({"tensors": 65537}, CACHES),
    ({"heads": 0}, CACHES),
    ({"rows": 0}, ROWS),
    ({"rows": 9}, ROWS),
    ({"capacity": 1}, ROWS),
    ({"row_bytes": 0}, ROW_BYTES),
    ({"row_bytes": 30}, ROW_BYTES),
    ({"row_bytes": 65540}, ROW_BYTES),
    ({"cache_stride": 752}, STRIDE),
    ({"cache_stride": 776}, STRIDE),
    ({"cache_stride": 2**45}, STRIDE),
    ({"rows_stride": 176}, STRIDE),
    ({"rows_stride": 2**64 - 16}, STRIDE),
    ({"heads": 2**31 - 1, "capacity": 2**31 - 1, "cache_stride": 2**44}, STRIDE),
]


@pytest.mark.parametrize(("changes", "status"), WRONG)
def test_wrong_sizes(emulated: ctypes.CDLL, changes: dict[str, int], status: int) -> None:
    """Found before the device is touched: the pointers lead nowhere."""
    wrong = abi.Append(**(GOOD | changes))
    assert emulated.divprune_append_rows(wrong, 16, 16, 16, None) == status
    with refused("kernel-arguments-invalid"):
        abi.check(emulated, status)


def test_wrong_pointers(emulated: ctypes.CDLL) -> None:
    good = abi.Append(**GOOD)
    assert emulated.divprune_append_rows(None, 16, 16, 16, None) == NULL
    for missing in range(3):
        pointers: list[int | None] = [16, 16, 16]
        pointers[missing] = None
        assert emulated.divprune_append_rows(good, *pointers, None) == NULL
    for pointers, status in (
        ((8, 16, 16), MISALIGNED),
        ((16, 24, 16), MISALIGNED),
        ((16, 16, 12), MISALIGNED),
    ):
        assert emulated.divprune_append_rows(good, *pointers, None) == status


def test_more_rows_than_a_launch_can_copy(emulated: ctypes.CDLL) -> None:
    huge = abi.Append(65536, 1, 2**20, 2**20, 65536, 0, 2**36, 2**36)
    assert emulated.divprune_append_rows(huge, 16, 16, 16, None) == CACHES
