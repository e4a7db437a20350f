"""The distances by Hopper's warpgroups on a GPU: what nobody gets who does not ask, until this has passed there.

With ``-k sanitizer`` it is small enough for the tools of the CUDA toolkit, as in ``test_kernel.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
from gpu_tensors import to_gpu, to_numpy
from selection_cases import (
    Case,
    assert_max_min,
    min_sum_regret,
    ragged,
    random_case,
    random_tokens,
    special_cases,
)

from divprune_edge.models.selectors.divprune import cosine_distances
from divprune_edge.plugins import abi, torch_op

torch = pytest.importorskip("torch")

HALVES = ("float16", "bfloat16")
MATRIX_FREE = 1
RANDOM_CASES, CHUNKS = 200, 5


@pytest.fixture(autouse=True)
def on_hopper() -> None:
    """Skip where there are no such warpgroups."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the GPU is not of sm_90")


def check(case: Case, matrix_budget: int = 0) -> None:
    kept, indices = torch_op.max_min_diversity(
        to_gpu(case.tokens), case.keep, to_gpu(case.valid), matrix_budget=matrix_budget, product="wgmma"
    )
    assert_max_min(case, to_numpy(kept, case.tokens.dtype), indices.cpu().numpy())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "shape",
    [(1, 5, 8), (3, 65, 40), (1, 128, 64), (1, 129, 4096), (1, 577, 4096), (88, 129, 8), (1, 2881, 136)],
)
def test_distances(shape: tuple[int, int, int], dtype: str) -> None:
    tokens = random_tokens(7, shape, dtype)
    found = torch_op.cosine_distances(to_gpu(tokens), product="wgmma").cpu().numpy()
    assert np.array_equal(found, found.transpose(0, 2, 1))
    for rows, matrix in zip(tokens, found, strict=True):
        wanted = cosine_distances(rows)
        np.fill_diagonal(wanted, 0)
        np.testing.assert_allclose(matrix, wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("case", [c for dtype in HALVES for c in special_cases(dtype)], ids=str)
def test_special_cases(case: Case, budget: int) -> None:
    check(case, budget)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_cases(chunk: int) -> None:
    for seed in range(chunk, RANDOM_CASES, CHUNKS):
        case = random_case(seed, HALVES[seed % 2], rows=700, width=1200, batch=8)
        check(case, MATRIX_FREE if seed % 5 == 4 else 0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("rows", "keep", "width"),
    [(576, 58, 4096), (576, 58, 1024), (1152, 115, 4096), (2880, 288, 4096), (6272, 627, 3584)],
)
def test_sizes_of_real_models(rows: int, keep: int, width: int, dtype: str) -> None:
    check(Case("real", random_tokens(rows, (1, rows, width), dtype), np.ones((1, rows), np.bool_), keep))


@pytest.mark.parametrize("dtype", HALVES)
def test_the_sum_rule(dtype: str) -> None:
    case = Case("sum", random_tokens(40, (4, 300, 256), dtype), ragged(40, 4, 300, 30), 30)
    seeds = np.array([np.flatnonzero(valid)[3] for valid in case.valid])
    _, indices = torch_op.min_sum_similarity(
        to_gpu(case.tokens), to_gpu(seeds), case.keep, to_gpu(case.valid), product="wgmma"
    )
    for tokens, valid, seed, chosen in zip(
        case.tokens, case.valid, seeds, indices.cpu().numpy(), strict=True
    ):
        assert min_sum_regret(tokens, valid, int(seed), chosen) <= 1e-5


@pytest.mark.parametrize("shape", [(3, 577, 1032), (1, 2880, 4096)])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_same_bits_every_time(shape: tuple[int, int, int], dtype: str) -> None:
    tokens = to_gpu(random_tokens(50, shape, dtype))
    kept, indices = torch_op.max_min_diversity(tokens, 58, product="wgmma")
    distances = torch_op.cosine_distances(tokens, product="wgmma")
    for _ in range(50):
        again = torch_op.max_min_diversity(tokens, 58, product="wgmma")
        assert torch.equal(again[1], indices)
        assert torch.equal(again[0].view(torch.uint8), kept.view(torch.uint8))
        assert torch.equal(torch_op.cosine_distances(tokens, product="wgmma"), distances)


def test_a_captured_graph_and_its_launches() -> None:
    """Captured on one set of tokens and replayed on others: what describes them is part of the graph."""
    cases = [
        Case("graph", random_tokens(60 + i, (2, 576, 512), "float16"), np.ones((2, 576), np.bool_), 58)
        for i in range(3)
    ]
    tokens = to_gpu(cases[0].tokens)
    torch_op.max_min_diversity(tokens, 58, product="wgmma")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept, indices = torch_op.max_min_diversity(tokens, 58, product="wgmma")
    for case in cases:
        tokens.copy_(to_gpu(case.tokens))
        graph.replay()
        assert_max_min(case, to_numpy(kept, case.tokens.dtype), indices.cpu().numpy())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch_op.max_min_diversity(tokens, 58, product="wgmma")
        torch.cuda.synchronize()
    started = [event.key for event in profile.key_averages() if "divprune" in event.key]
    assert len(started) == 2
    assert any("wgmma_distances_kernel" in name for name in started)
    problem = abi.Problem(2, 576, 512, 58, abi.DTYPES["float16"], abi.PRODUCTS["wgmma"], 0)
    assert abi.launch_count(torch_op.library(), problem) == 2


@pytest.mark.parametrize("dtype", HALVES)
def test_sanitizer_run(dtype: str) -> None:
    """One tile, four, some off the diagonal, and parts of a width."""
    for shape, keep in (((2, 70, 1032), 9), ((3, 129, 8), 3), ((1, 300, 64), 20), ((1, 70, 2056), 9)):
        check(Case("sanitizer", random_tokens(80, shape, dtype), ragged(80, *shape[:2], keep), keep))
