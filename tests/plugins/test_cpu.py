"""The selection on the CPU against the reference, for every set of instructions that this processor has."""

from __future__ import annotations

import ctypes
import subprocess
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from plugins_emulation import SOURCE, compile_cpu, need
from selection_cases import (
    DTYPES,
    Case,
    assert_max_min,
    assert_well_formed,
    ragged,
    random_tokens,
    special_cases,
)

from divprune_edge.models.selectors.divprune import cosine_distances, max_min_select
from divprune_edge.models.selectors.todre import max_sum_picks
from divprune_edge.plugins import abi

pytestmark = pytest.mark.xdist_group("cpu")
INSTRUCTIONS = ("baseline", "avx2", "avx512")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    found = ctypes.CDLL(str(compile_cpu(tmp_path_factory.mktemp("cpu"))))
    found.cpu_has.argtypes = [c_char_p]
    found.cpu_best.restype = c_char_p
    found.cpu_select_item.argtypes = [
        c_char_p,
        c_int,
        POINTER(abi.Problem),
        *[c_void_p] * 2,
        c_int64,
        *[c_void_p] * 2,
        c_int,
    ]
    found.cpu_pack.argtypes = [c_char_p, c_void_p, *[c_int] * 5, c_void_p]
    return found


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest, library: ctypes.CDLL) -> bytes:
    name = str(request.param).encode()
    if not library.cpu_has(name):
        pytest.skip(f"this processor has no {request.param}")
    return name


def select(
    library: ctypes.CDLL,
    name: bytes,
    case: Case,
    threads: int = 1,
    seeds: npt.NDArray[np.int64] | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Select in each item: max-min, or the sum rule from ``seeds`` [B]."""
    _, rows, width = case.tokens.shape
    problem = abi.Problem(1, rows, width, case.keep, abi.DTYPES[case.tokens.dtype.name], 0, 0)
    kept = np.zeros((len(case.tokens), case.keep, width), case.tokens.dtype)
    indices = np.full((len(case.tokens), case.keep), -1, np.int64)
    for i, (tokens, valid) in enumerate(zip(case.tokens, case.valid, strict=True)):
        seed = 0 if seeds is None else int(seeds[i])
        inputs = (np.ascontiguousarray(tokens), np.ascontiguousarray(valid))
        outputs = (kept[i].ctypes.data, indices[i].ctypes.data)
        pointers = (inputs[0].ctypes.data, inputs[1].ctypes.data, seed, *outputs)
        assert library.cpu_select_item(name, seeds is not None, problem, *pointers, threads)
    return kept, indices


def exact_case(seed: int, dtype: str) -> Case:
    """Small whole numbers: every sum is exact in any order, so that picks are equal, among many ties, too."""
    rng = np.random.default_rng(seed)
    batch, rows, width = (int(rng.integers(1, most)) for most in (4, 200, 300))
    keep = int(rng.integers(1, rows + 1))
    tokens = rng.integers(-2, 3, (batch, rows, width)).astype(DTYPES[dtype])
    tokens[:, rng.random(rows) < 0.1] = 0
    if rows > 4:
        tokens[:, rng.integers(0, rows, rows // 3)] = tokens[:, rng.integers(0, rows, rows // 3)]
    return Case(f"exact-{seed}", tokens, ragged(seed, batch, rows, keep), keep)


@pytest.mark.parametrize("dtype", DTYPES)
def test_picks_are_those_of_the_reference(library: ctypes.CDLL, instructions: bytes, dtype: str) -> None:
    for seed in range(60):
        case = exact_case(seed, dtype)
        kept, indices = select(library, instructions, case, threads=1 + seed % 3)
        assert_well_formed(case, kept, indices)
        for tokens, valid, chosen in zip(case.tokens, case.valid, indices, strict=True):
            assert np.array_equal(chosen, max_min_select(tokens, valid, case.keep)), case


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_cases(library: ctypes.CDLL, instructions: bytes, dtype: str) -> None:
    for case in special_cases(dtype):
        assert_max_min(case, *select(library, instructions, case))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_rule(library: ctypes.CDLL, instructions: bytes, dtype: str) -> None:
    for seed in range(40):
        case = exact_case(100 + seed, dtype)
        seeds = np.array([np.flatnonzero(valid)[-1] for valid in case.valid])
        kept, indices = select(library, instructions, case, seeds=seeds)
        assert_well_formed(case, kept, indices)
        for tokens, valid, first, chosen in zip(case.tokens, case.valid, seeds, indices, strict=True):
            wanted = max_sum_picks(cosine_distances(tokens), valid, case.keep, int(first))
            assert np.array_equal(chosen, np.sort(wanted)), case


@pytest.mark.parametrize(("rows", "keep", "width"), [(576, 58, 1030), (700, 70, 2500), (1024, 90, 64)])
def test_slices_and_tiles(
    library: ctypes.CDLL, instructions: bytes, rows: int, keep: int, width: int
) -> None:
    """Wide tokens are multiplied slice by slice, many in tiles of several panels; threads change nothing."""
    case = Case("large", random_tokens(3, (1, rows, width), "float32"), ragged(3, 1, rows, keep), keep)
    kept, indices = select(library, instructions, case)
    assert_max_min(case, kept, indices)
    for threads in (2, 3):
        assert np.array_equal(select(library, instructions, case, threads)[1], indices)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number(library: ctypes.CDLL, instructions: bytes, dtype: str) -> None:
    """Subnormal numbers, infinities and what is no number among them."""
    panel = library.cpu_pack(instructions, None, 0, 0, 0, 0, 0, None)
    numbers = np.arange(2**16, dtype=np.uint16).reshape(4, -1)
    tokens = np.concatenate([np.zeros((4, 3), np.uint16), numbers], axis=1)
    depth = numbers.shape[1]
    packed = np.full((depth, panel), -1, np.float32)
    code, width = abi.DTYPES[dtype], tokens.shape[1]
    library.cpu_pack(instructions, tokens.ctypes.data, code, 4, width, 3, depth, packed.ctypes.data)
    np.testing.assert_array_equal(packed[:, :4], numbers.view(DTYPES[dtype]).astype(np.float32).T)
    assert not packed[:, 4:].any(), "rows that there are not"


def test_too_few_valid_rows_and_numbers_that_are_none(library: ctypes.CDLL, instructions: bytes) -> None:
    """As on a GPU: K distinct indices whatever comes, what is valid first."""
    tokens = random_tokens(5, (1, 40, 24), "float32")
    valid = np.zeros((1, 40), np.bool_)
    valid[0, [30, 35]] = True
    _, indices = select(library, instructions, Case("few", tokens, valid, 5))
    assert indices.tolist() == [[0, 1, 2, 30, 35]]
    tokens[0, ::3] = np.nan
    _, indices = select(library, instructions, Case("nan", tokens, np.ones((1, 40), np.bool_), 25))
    assert np.all(np.diff(indices) > 0)
    assert 0 <= indices[0, 0] <= indices[0, -1] < 40


def test_the_best_instructions_are_chosen(library: ctypes.CDLL) -> None:
    there = [name for name in INSTRUCTIONS if library.cpu_has(name.encode())]
    assert library.cpu_best().decode() == there[-1]
    assert not library.cpu_has(b"avx1024")


@pytest.mark.parametrize("name", ["baseline.cpp", "instructions.cpp", "max_min.cpp"])
def test_it_compiles_for_a_jetson(tmp_path: Path, name: str) -> None:
    compiler = need("aarch64-linux-gnu-g++")
    options = ["-std=gnu++17", "-O3", "-Wall", "-Wextra", "-Werror", "-fPIC"]
    made = tmp_path / "made.o"
    command = [compiler, *options, "-c", str(SOURCE / "cpu" / name), "-o", str(made)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert made.stat().st_size > 0
