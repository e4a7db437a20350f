"""The C interface without a GPU: argument checks, workspace arithmetic, clean errors."""

from __future__ import annotations

import ctypes
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
    sentences = {emulated.divprune_status_message(status) for status in range(16)}
    assert len(sentences) == 16
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
    stride = -(-rows // 4) * 4
    matrix = batch * rows * stride * 4
    stored = matrix <= 256 * 2**20
    expected = align(4 * (batch + 1)) + align(batch * -(-rows // 64) * stride * 4)
    expected += align(matrix) if stored else 2 * align(4 * batch * rows) + align(8 * batch * keep)
    assert abi.workspace_bytes(emulated, sizes) == expected
    assert abi.launch_count(emulated, sizes) == (2 if stored else keep + 3)


@pytest.mark.parametrize("rows", [1, 40, 576, 1152, 2880, 6272, 8765, 32768])
@pytest.mark.parametrize(
    ("architecture", "multiprocessors"), [(75, 40), (87, 8), (87, 16), (90, 132), (130, 1)]
)
def test_a_plan_covers_what_there_is(
    emulated: ctypes.CDLL, rows: int, architecture: int, multiprocessors: int
) -> None:
    sizes = problem(batch=1, candidates=rows, width=4096, keep=max(1, rows // 10))
    spread = abi.plan(emulated, sizes, architecture, multiprocessors)
    side = -(-rows // spread.tile)
    assert (spread.tile in (64, 128), spread.tiles) == (True, side * (side + 1) // 2)
    assert spread.parts in ((1, 2, 4, 8) if architecture >= 90 else (1,)), "clusters came with sm_90"
    assert spread.shards in ((1, 2, 4, 8) if architecture >= 90 else (1,))
    assert spread.threads % 32 == 0
    assert spread.threads * spread.shards <= 1024
    assert any(4 * vectors * spread.threads * spread.shards >= rows for vectors in (1, 2, 4, 8))
    assert 1 <= spread.workers <= sizes.keep


def test_plans_of_the_sizes_that_count(emulated: ctypes.CDLL) -> None:
    """An H200 splits few tiles over its multiprocessors, and the picks of many rows; an Orin does neither."""
    few, many = (problem(batch=1, candidates=n, width=w) for n, w in ((576, 4096), (6272, 3584)))
    found = {a: [abi.plan(emulated, p, a, m) for p in (few, many)] for a, m in ((90, 132), (87, 16))}
    assert [(s.tile, s.parts > 1, s.shards) for s in found[90]] == [(128, True, 1), (128, False, 8)]
    assert [(s.tile, s.parts, s.shards) for s in found[87]] == [(64, 1, 1), (128, 1, 1)]
    assert emulated.divprune_plan(problem(keep=0), 87, 16, abi.Spread()) == KEEP
    assert emulated.divprune_plan(few, 87, 16, None) == NULL


def test_a_budget_bounds_the_matrix(emulated: ctypes.CDLL) -> None:
    exact = problem(candidates=576, matrix_budget=2 * 576 * 576 * 4)
    below = problem(candidates=576, matrix_budget=2 * 576 * 576 * 4 - 1)
    assert abi.launch_count(emulated, exact) == 2
    assert abi.launch_count(emulated, below) == GOOD["keep"] + 3
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
