"""The kernel on a GPU against the reference: what docs/plugin.md calls evidence level E3.

Beyond ``pytest tests/gpu``, the tools of the CUDA toolkit look for what a comparison cannot see::

    compute-sanitizer --tool memcheck  --error-exitcode 1 python -m pytest -q tests/gpu -k sanitizer
    compute-sanitizer --tool racecheck --error-exitcode 1 python -m pytest -q tests/gpu -k sanitizer
    compute-sanitizer --tool synccheck --error-exitcode 1 python -m pytest -q tests/gpu -k sanitizer
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gpu_tensors import to_gpu, to_numpy
from raising import refused
from selection_cases import (
    DTYPES,
    Case,
    assert_max_min,
    assert_well_formed,
    min_sum_picks,
    min_sum_regret,
    ragged,
    random_case,
    random_tokens,
    special_cases,
)

from divprune_edge.models.selectors.divprune import cosine_distances, max_min_picks
from divprune_edge.plugins import abi, torch_op

torch = pytest.importorskip("torch")

MATRIX_FREE = 1
CHUNKS = 20
RANDOM_CASES = 1000


def select(case: Case, matrix_budget: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    kept, indices = torch_op.max_min_diversity(
        to_gpu(case.tokens), case.keep, to_gpu(case.valid), matrix_budget=matrix_budget
    )
    return to_numpy(kept, case.tokens.dtype), indices.cpu().numpy()


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("case", [c for dtype in DTYPES for c in special_cases(dtype)], ids=str)
def test_special_cases(case: Case, budget: int) -> None:
    assert_max_min(case, *select(case, budget))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_cases(chunk: int) -> None:
    for seed in range(chunk, RANDOM_CASES, CHUNKS):
        dtype = list(DTYPES)[seed % 3]
        case = random_case(seed, dtype, rows=700, width=1200, batch=8)
        assert_max_min(case, *select(case, MATRIX_FREE if seed % 5 == 4 else 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "keep", "width"), [(576, 58, 4096), (576, 58, 1024), (1152, 115, 4096), (2880, 288, 4096)]
)
def test_sizes_of_real_models(rows: int, keep: int, width: int, dtype: str) -> None:
    case = Case("real", random_tokens(rows, (1, rows, width), dtype), np.ones((1, rows), np.bool_), keep)
    assert_max_min(case, *select(case))


@pytest.mark.parametrize("rows", [4096, 4097, 6272, 8192, 8193, 16400])
def test_many_rows(rows: int) -> None:
    """Up to 8192 rows the matrix is stored, above that it is not; each number of rows a thread is met."""
    case = Case("many", random_tokens(rows, (1, rows, 64), "float16"), np.ones((1, rows), np.bool_), 40)
    assert_max_min(case, *select(case))
    assert_max_min(case, *select(case, 2**40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 5, 8), (3, 65, 40), (1, 577, 4096), (88, 129, 8), (1, 2881, 136)])
def test_distances(shape: tuple[int, int, int], dtype: str) -> None:
    """True float32: TF32 would be off by 1e-4 at these widths."""
    tokens = random_tokens(7, shape, dtype)
    found = torch_op.cosine_distances(to_gpu(tokens)).cpu().numpy()
    assert np.array_equal(found, found.transpose(0, 2, 1))
    for rows, matrix in zip(tokens, found, strict=True):
        wanted = cosine_distances(rows)
        np.fill_diagonal(wanted, 0)
        np.testing.assert_allclose(matrix, wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("rows", [1, 2, 40, 576, 2880, 4097, 8193])
def test_picks_on_a_shared_matrix(rows: int) -> None:
    """Exact indices; the values are coarse, so that ties are everywhere."""
    rng = np.random.default_rng(rows)
    half = np.triu(rng.integers(0, 12, (rows, rows)).astype(np.float32) / 8, 1)
    matrix, valid = half + half.T, rng.random(rows) < 0.8
    valid[: max(1, rows // 4)] = True
    keep = min(max(1, int(valid.sum()) // 2), 400)
    gpu, mask = to_gpu(matrix[None]), to_gpu(valid[None])
    found = torch_op.pick(gpu, keep, mask)[0].cpu().numpy()
    assert np.array_equal(found, np.sort(max_min_picks(matrix, valid, keep)))
    summed = torch_op.pick(gpu, keep, mask, torch.zeros(1, dtype=torch.int64, device="cuda"))[0].cpu().numpy()
    assert np.array_equal(summed, np.sort(min_sum_picks(matrix, valid, 0, keep)))


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_rule(dtype: str, budget: int) -> None:
    case = Case("sum", random_tokens(40, (4, 300, 256), dtype), ragged(40, 4, 300, 30), 30)
    seeds = np.array([np.flatnonzero(valid)[3] for valid in case.valid])
    kept, indices = torch_op.min_sum_similarity(
        to_gpu(case.tokens), to_gpu(seeds), case.keep, to_gpu(case.valid), matrix_budget=budget
    )
    found = indices.cpu().numpy()
    assert_well_formed(case, to_numpy(kept, case.tokens.dtype), found)
    for tokens, valid, seed, chosen in zip(case.tokens, case.valid, seeds, found, strict=True):
        assert min_sum_regret(tokens, valid, int(seed), chosen) <= 1e-5


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype: str, budget: int) -> None:
    case = Case("repeat", random_tokens(50, (3, 577, 1032), dtype), ragged(50, 3, 577, 58), 58)
    tokens, valid = to_gpu(case.tokens), to_gpu(case.valid)
    first = torch_op.max_min_diversity(tokens, case.keep, valid, matrix_budget=budget)
    distances = torch_op.cosine_distances(tokens)
    for _ in range(100):
        again = torch_op.max_min_diversity(tokens, case.keep, valid, matrix_budget=budget)
        assert torch.equal(again[1], first[1])
        assert torch.equal(again[0].view(torch.uint8), first[0].view(torch.uint8))
        assert torch.equal(torch_op.cosine_distances(tokens), distances)


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("rows", [70, 576, 2880])
def test_launches(rows: int, budget: int) -> None:
    """Those that the library says, by CUPTI's count: two where the distances are stored."""
    tokens = to_gpu(random_tokens(90, (1, rows, 1024), "float16"))
    torch_op.max_min_diversity(tokens, 9, matrix_budget=budget)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch_op.max_min_diversity(tokens, 9, matrix_budget=budget)
        torch.cuda.synchronize()
    started = sum(event.count for event in profile.key_averages() if "divprune" in event.key)
    wanted = abi.launch_count(torch_op.library(), abi.Problem(1, rows, 1024, 9, 1, 0, budget))
    assert started == wanted
    assert budget or wanted == 2


@pytest.mark.parametrize("rows", [576, 2880])
def test_beside_other_work(rows: int) -> None:
    """Blocks that copy wait for the picks: also where other streams leave them little room."""
    case = Case("busy", random_tokens(91, (1, rows, 512), "float16"), np.ones((1, rows), np.bool_), 58)
    tokens, busy = to_gpu(case.tokens), torch.cuda.Stream()
    matrix = torch.rand(4096, 4096, device="cuda")
    with torch.cuda.stream(busy):
        for _ in range(50):
            matrix = matrix @ matrix / matrix.norm()
    found = [torch_op.max_min_diversity(tokens, 58) for _ in range(50)]
    for kept, indices in (found[0], found[-1]):
        assert_max_min(case, to_numpy(kept, case.tokens.dtype), indices.cpu().numpy())


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
def test_a_captured_graph(budget: int) -> None:
    """Captured on one set of tokens and replayed on others."""
    cases = [
        Case("graph", random_tokens(60 + i, (2, 576, 512), "float16"), np.ones((2, 576), np.bool_), 58)
        for i in range(3)
    ]
    tokens = to_gpu(cases[0].tokens)
    torch_op.max_min_diversity(tokens, 58, matrix_budget=budget)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept, indices = torch_op.max_min_diversity(tokens, 58, matrix_budget=budget)
    for case in cases:
        tokens.copy_(to_gpu(case.tokens))
        graph.replay()
        assert_max_min(case, to_numpy(kept, case.tokens.dtype), indices.cpu().numpy())


def test_another_stream() -> None:
    case = Case("stream", random_tokens(70, (1, 576, 512), "float16"), np.ones((1, 576), np.bool_), 58)
    stream = torch.cuda.Stream()
    tokens = to_gpu(case.tokens)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        kept, indices = torch_op.max_min_diversity(tokens, 58)
    stream.synchronize()
    assert_max_min(case, to_numpy(kept, case.tokens.dtype), indices.cpu().numpy())


def test_wrong_arguments() -> None:
    tokens = torch.zeros(1, 10, 16, device="cuda")
    with refused("tensor-unfit", "cpu"):
        torch_op.max_min_diversity(tokens.cpu(), 3)
    with refused("tensor-unfit", "[B, N, D]", "[10, 16]"):
        torch_op.max_min_diversity(tokens[0], 3)
    with refused("tensor-unfit", "float64"):
        torch_op.max_min_diversity(tokens.double(), 3)
    with refused("kernel-arguments-invalid"):
        torch_op.max_min_diversity(tokens, 11)
    with refused("kernel-arguments-invalid", 8):
        torch_op.max_min_diversity(tokens[:, :, :12], 3)
    with refused("tensor-unfit", "valid", "bool", "[1, 10]"):
        torch_op.max_min_diversity(tokens, 3, torch.ones(1, 9, dtype=torch.bool, device="cuda"))
    with refused("tensor-unfit", "seeds", "int64", "[1]"):
        torch_op.min_sum_similarity(tokens, torch.zeros(2, dtype=torch.int64, device="cuda"), 3)


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sanitizer_run(dtype: str, budget: int) -> None:
    """Small enough for compute-sanitizer, and through every kernel: large and small tiles, split sums."""
    for shape, keep in (((2, 70, 1032), 9), ((88, 129, 8), 3), ((1, 300, 64), 20), ((1, 2100, 16), 9)):
        case = Case("sanitizer", random_tokens(80, shape, dtype), ragged(80, *shape[:2], keep), keep)
        assert_max_min(case, *select(case, budget))
    torch_op.cosine_distances(to_gpu(case.tokens))
    torch_op.pick(torch.rand(1, 65, 65, device="cuda"), 5)
