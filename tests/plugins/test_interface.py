"""The C interface without a GPU: argument checks, workspace arithmetic, clean errors."""

from __future__ import annotations

import ctypes
import math
import re
from ctypes import byref, c_int32, c_uint64
from typing import Any

import numpy as np
import pytest
from plugins_emulation import aligned
from raising import failed, refused

from divprune_edge.plugins import abi
from divprune_edge.plugins.loader import Library

pytestmark = pytest.mark.xdist_group("emulated")

GOOD: dict[str, Any] = {"batch": 2, "candidates": 40, "width": 64, "keep": 8, "dtype": 1, "matrix_budget": 0}
NULL, BATCH, CANDIDATES, WIDTH, KEEP, DTYPE, MISALIGNED, WORKSPACE, CUDA = range(1, 10)


def problem(**changes: int) -> abi.Problem:
    return abi.Problem(**(GOOD | changes))


def align(size: int) -> int:
    return (size + 255) // 256 * 256


WRONG = [
    ({"batch": 0}, BATCH),
    ({"batch": 65536}, BATCH),
    ({"candidates": 0}, CANDIDATES),
    ({"candidates": 32769}, CANDIDATES),
    ({"candidates": -1}, CANDIDATES),
    ({"width": 0}, WIDTH),
    ({"width": 12}, WIDTH),
    ({"width": 65544}, WIDTH),
    ({"keep": 0}, KEEP),
    ({"keep": 41}, KEEP),
    ({"dtype": -1}, DTYPE),
    ({"dtype": 3}, DTYPE),
]


@pytest.mark.parametrize(("changes", "status"), WRONG)
def test_wrong_sizes(emulated: ctypes.CDLL, changes: dict[str, int], status: int) -> None:
    size, count = c_uint64(7), c_int32(7)
    wrong = problem(**changes)
    assert emulated.divprune_workspace_bytes(wrong, size) == status
    assert emulated.divprune_workspace_bound(wrong, size) == status
    assert emulated.divprune_launch_count(wrong, count) == status
    assert (size.value, count.value) == (7, 7)
    assert emulated.divprune_max_min(wrong, 16, None, 16, 16, 16, 2**40, None) == status
    assert emulated.divprune_min_sum(wrong, 16, None, 16, 16, 16, 16, 2**40, None) == status
    assert emulated.divprune_distances(wrong, 16, 16, 16, 2**40, None) == status
    if status in (BATCH, CANDIDATES, KEEP):
        assert emulated.divprune_pick(wrong, 16, None, None, 16, 16, 2**40, None) == status


def test_null_pointers(emulated: ctypes.CDLL) -> None:
    good = problem()
    assert emulated.divprune_workspace_bytes(None, byref(c_uint64())) == NULL
    assert emulated.divprune_workspace_bytes(good, None) == NULL
    assert emulated.divprune_workspace_bound(good, None) == NULL
    assert emulated.divprune_launch_count(good, None) == NULL
    assert emulated.divprune_max_min(None, 16, None, 16, 16, 16, 2**40, None) == NULL
    for missing in (0, 3, 4):
        pointers = [16, None, 16, 16, 16]
        pointers[missing] = None
        assert emulated.divprune_max_min(good, *pointers, 2**40, None) == NULL
    assert emulated.divprune_min_sum(good, 16, None, None, 16, 16, 16, 2**40, None) == NULL
    assert emulated.divprune_distances(good, 16, None, 16, 2**40, None) == NULL
    assert emulated.divprune_pick(None, 16, None, None, 16, 16, 2**40, None) == NULL
    assert emulated.divprune_pick(good, None, None, None, 16, 16, 2**40, None) == NULL


def test_misaligned_and_too_small(emulated: ctypes.CDLL) -> None:
    good = problem()
    size = abi.workspace_bytes(emulated, good)
    assert emulated.divprune_max_min(good, 8, None, 16, 16, 16, size, None) == MISALIGNED
    assert emulated.divprune_max_min(good, 16, None, 24, 16, 16, size, None) == MISALIGNED
    assert emulated.divprune_max_min(good, 16, None, 16, 16, 8, size, None) == MISALIGNED
    assert emulated.divprune_max_min(good, 16, None, 16, 16, 16, size - 1, None) == WORKSPACE
    assert emulated.divprune_distances(good, 16, 16, 16, 0, None) == WORKSPACE


def test_every_status_has_a_sentence(emulated: ctypes.CDLL) -> None:
    sentences = {emulated.divprune_status_message(status) for status in range(15)}
    assert len(sentences) == 15
    assert all(sentence.endswith(b".") for sentence in sentences)
    with refused("kernel-arguments-invalid", 8):
        abi.check(emulated, WIDTH)
    with failed("kernel-failed"):
        abi.check(emulated, CUDA)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", [1, 40, 576, 2880, 6272, 8192])
def test_the_workspace_formula(emulated: ctypes.CDLL, rows: int, batch: int) -> None:
    """The formula, worked out independently."""
    width, keep = 4096, max(1, rows // 10)
    sizes = problem(batch=batch, candidates=rows, width=width, keep=keep)
    tile = 128 if batch * triangle(-(-rows // 128)) >= 264 else 64
    tiles = batch * triangle(-(-rows // tile))
    parts = min(-(-264 // min(tiles, 264)), 8, width // 256)
    matrix = batch * rows * (-(-rows // 4) * 4) * 4
    stored = matrix <= 256 * 2**20
    expected = 2 * align(4 * batch * rows)
    if parts > 1:
        part = math.ceil(math.ceil(width / parts) / 32) * 32
        parts = -(-width // part)
        expected += align(4 * tiles) + align(4 * tiles * parts * tile * tile)
    expected += align(matrix) if stored else align(4 * batch * rows) + align(8 * batch * keep)
    assert abi.workspace_bytes(emulated, sizes) == expected
    assert abi.launch_count(emulated, sizes) == (4 if stored else keep + 4)


def triangle(side: int) -> int:
    return side * (side + 1) // 2


def test_a_budget_bounds_the_matrix(emulated: ctypes.CDLL) -> None:
    exact = problem(candidates=576, matrix_budget=2 * 576 * 576 * 4)
    below = problem(candidates=576, matrix_budget=2 * 576 * 576 * 4 - 1)
    assert abi.launch_count(emulated, exact) == 4
    assert abi.launch_count(emulated, below) == GOOD["keep"] + 4
    assert abi.workspace_bytes(emulated, below) < abi.workspace_bytes(emulated, exact)


@pytest.mark.parametrize("budget", [0, 10**6])
def test_the_bound_holds_for_every_smaller_size(emulated: ctypes.CDLL, budget: int) -> None:
    largest = {"batch": 8, "candidates": 1500, "width": 4096, "keep": 150, "matrix_budget": budget}
    bound = abi.workspace_bound(emulated, problem(**largest))
    for batch in range(1, 9):
        for rows in range(1, 1501, 13):
            sizes = largest | {"batch": batch, "candidates": rows, "keep": min(rows, 150)}
            assert abi.workspace_bytes(emulated, problem(**sizes)) <= bound, (batch, rows)


def test_the_built_library_reports_that_there_is_no_gpu(built: Library) -> None:
    """It loads anywhere, and says what is wrong where it cannot run."""
    library = abi.load(built.path)
    assert library.divprune_version().decode() == built.record.version
    sizes = problem()
    tokens, kept = aligned(np.zeros((2, 40, 64), np.float16)), aligned(np.zeros((2, 8, 64), np.float16))
    workspace, indices = (
        aligned(np.zeros(abi.workspace_bytes(library, sizes), np.uint8)),
        np.zeros((2, 8), np.int64),
    )
    if has_gpu():
        pytest.skip("there is a GPU")
    status = library.divprune_max_min(
        sizes,
        tokens.ctypes.data,
        None,
        kept.ctypes.data,
        indices.ctypes.data,
        workspace.ctypes.data,
        workspace.size,
        None,
    )
    assert status == CUDA
    with failed("kernel-failed") as error:
        abi.check(library, status)
    assert re.search("driver|device", str(error.value))
    # Wrong arguments are found before the device is looked for.
    assert library.divprune_max_min(problem(width=12), 16, None, 16, 16, 16, 2**40, None) == WIDTH


def has_gpu() -> bool:
    from divprune_edge.plugins.toolchain import local_architectures

    return bool(local_architectures())
