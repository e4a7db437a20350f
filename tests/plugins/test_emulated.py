"""The kernels' own source, run on the CPU by the emulator, against the reference."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import pytest
from plugins_emulation import EMULATED, aligned, distances, emulate, garbage, plain, problem_of
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
from divprune_edge.plugins import abi

pytestmark = pytest.mark.xdist_group("emulated")
MATRIX_FREE = 1


@pytest.mark.parametrize("architecture", EMULATED)
@pytest.mark.parametrize("case", [c for dtype in DTYPES for c in special_cases(dtype)], ids=str)
def test_special_cases(emulated_libraries: dict[int, ctypes.CDLL], architecture: int, case: Case) -> None:
    library = plain(emulated_libraries[architecture])
    assert_max_min(case, *emulate(library, case))


@pytest.mark.parametrize("case", list(special_cases("float16")), ids=str)
def test_special_cases_without_a_matrix(emulated: ctypes.CDLL, case: Case) -> None:
    assert_max_min(case, *emulate(emulated, case, matrix_budget=MATRIX_FREE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(12))
def test_random_cases(emulated: ctypes.CDLL, seed: int, dtype: str) -> None:
    case = random_case(seed, dtype)
    assert_max_min(case, *emulate(emulated, case, matrix_budget=seed % 3 == 2))


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", [800, 900])
def test_the_order_of_threads_and_blocks_does_not_matter(
    emulated_libraries: dict[int, ctypes.CDLL], architecture: int, dtype: str, budget: int
) -> None:
    """A missing barrier, or a sum whose order is left to chance, shows here. With clusters the width makes two."""
    library = plain(emulated_libraries[architecture])
    case = Case("order", random_tokens(20, (2, 70, 776), dtype), ragged(20, 2, 70, 9), 9)
    assert abi.plan(library, problem_of(case), architecture // 10, 132).parts == 1 + (architecture >= 900)
    results = []
    for schedule in (0, 1, 2, 3):
        library.divprune_emulator_schedule(schedule)
        kept, indices = emulate(library, case, matrix_budget=budget)
        results.append(kept.tobytes() + indices.tobytes() + distances(library, case).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_gpu_of_one_architecture_without_clusters_has_the_same_bits(
    emulated: ctypes.CDLL, dtype: str
) -> None:
    """Large tiles and small ones add in the same order."""
    case = Case("gpus", random_tokens(22, (1, 384, 264), dtype), ragged(22, 1, 384, 9), 9)
    tiles, results = set(), set()
    for device, multiprocessors in enumerate((132, 16, 2)):
        emulated.divprune_emulator_device(device)
        tiles.add(abi.plan(emulated, problem_of(case), 80, multiprocessors).tile)
        kept, indices = emulate(emulated, case)
        results.add(kept.tobytes() + indices.tobytes() + distances(emulated, case).tobytes())
    assert (tiles, len(results)) == ({64, 128}, 1)


@pytest.mark.parametrize("width", [520, 2048, 2056])
@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_a_cluster(with_clusters: ctypes.CDLL, dtype: str, width: int) -> None:
    """Two, eight, and a last one that is short."""
    case = Case("parts", random_tokens(23, (1, 70, width), dtype), ragged(23, 1, 70, 20), 20)
    assert abi.plan(with_clusters, problem_of(case), 90, 132).parts == (2 if width == 520 else 8)
    assert_max_min(case, *emulate(with_clusters, case))
    found = distances(with_clusters, case)
    wanted = cosine_distances(case.tokens[0])
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-6)
    assert np.array_equal(found, found.transpose(0, 2, 1))


@pytest.mark.parametrize("architecture", [800, 900])
def test_launches(emulated_libraries: dict[int, ctypes.CDLL], architecture: int) -> None:
    """Two: distances, then picks with the copy of what they keep; without a matrix one more for each pick."""
    library = plain(emulated_libraries[architecture])
    case = Case("launches", random_tokens(24, (2, 70, 520), "float16"), np.ones((2, 70), np.bool_), 9)
    for budget, wanted in ((0, 2), (MATRIX_FREE, case.keep + 3)):
        emulate(library, case, matrix_budget=budget)
        assert library.divprune_emulator_launches() == wanted
        assert abi.launch_count(library, problem_of(case, budget)) == wanted
        emulate(library, case, np.zeros(2, np.int64), budget)
        assert library.divprune_emulator_launches() == wanted


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 5, 8), (2, 65, 40), (1, 130, 520), (1, 64, 2048)])
def test_distances(emulated: ctypes.CDLL, shape: tuple[int, int, int], dtype: str) -> None:
    case = Case("distances", random_tokens(30, shape, dtype), np.ones(shape[:2], np.bool_), 1)
    found = distances(emulated, case)
    for tokens, matrix in zip(case.tokens, found, strict=True):
        wanted = cosine_distances(tokens)
        np.fill_diagonal(wanted, 0)
        np.testing.assert_allclose(matrix, wanted, rtol=0, atol=1e-6)
    assert np.array_equal(found, found.transpose(0, 2, 1))


@pytest.mark.parametrize("architecture", [800, 900])
def test_float32_is_true_float32(emulated_libraries: dict[int, ctypes.CDLL], architecture: int) -> None:
    """The order of additions and each rounding are the GPU's own here, as no tensor core takes part.

    Rows that are nearly the same, one channel a hundred times as large as the others, and an offset that all share:
    where norms and products are largest beside what is left of them.
    """
    library = plain(emulated_libraries[architecture])
    rng = np.random.default_rng(34)
    tokens = rng.standard_normal((1, 40, 4096)).astype(np.float32)
    tokens[0, :10] = tokens[0, 0] + 1e-3 * tokens[0, :10]
    tokens[0, 10:20, 7] = 100
    tokens[0, 20:30] += 3
    tokens[0, 31] = tokens[0, 30]
    wide = tokens[0].astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    wanted = 1 - unit @ unit.T
    np.fill_diagonal(wanted, 0)
    found = distances(library, Case("float32", tokens, np.ones((1, 40), np.bool_), 1))[0]
    assert np.abs(found - wanted).max() < 2e-6, "a GPU is held to 3e-6"
    assert abs(found[30, 31]) < 2e-7, "the same row twice"


def test_large_tiles(emulated: ctypes.CDLL) -> None:
    """More of them than multiprocessors, and more rows to copy than blocks that copy."""
    emulated.divprune_emulator_device(2)
    case = Case("large", random_tokens(31, (2, 250, 520), "float16"), ragged(31, 2, 250, 9), 9)
    spread = abi.plan(emulated, problem_of(case), 80, 2)
    assert (spread.tile, spread.workers) == (128, 2)
    assert_max_min(case, *emulate(emulated, case))


def test_many_items(emulated: ctypes.CDLL) -> None:
    """What video batches run: more of them than blocks that copy."""
    case = Case("many", random_tokens(32, (88, 33, 8), "float16"), np.ones((88, 33), np.bool_), 2)
    assert_max_min(case, *emulate(emulated, case))


@pytest.mark.parametrize("rows", [1, 2, 31, 63, 128, 300])
def test_picks_on_a_shared_matrix(emulated: ctypes.CDLL, rows: int) -> None:
    """Exact indices; the values are coarse, so that ties are everywhere."""
    rng = np.random.default_rng(rows)
    half = np.triu(rng.integers(0, 12, (rows, rows)).astype(np.float32) / 8, 1)
    matrix = half + half.T
    valid = rng.random(rows) < 0.8
    valid[: max(1, rows // 4)] = True
    keep = max(1, int(valid.sum()) // 2)
    assert np.array_equal(pick(emulated, matrix, valid, keep), np.sort(max_min_picks(matrix, valid, keep)))
    assert np.array_equal(
        pick(emulated, matrix, valid, keep, seed=0), np.sort(min_sum_picks(matrix, valid, 0, keep))
    )


@pytest.mark.parametrize(
    ("rows", "keep", "schedule"), [(2049, 9, 0), (2049, 9, 2), (2100, 9, 2), (2100, 170, 0)]
)
def test_picks_that_a_cluster_shares(with_clusters: ctypes.CDLL, rows: int, keep: int, schedule: int) -> None:
    """Ties are everywhere, also between rows of different blocks; and once more picks than a block has threads."""
    with_clusters.divprune_emulator_schedule(schedule)
    plan = abi.plan(with_clusters, abi.Problem(1, rows, 8, keep, 0, 0, 0), 90, 132)
    assert (plan.shards, plan.threads < keep) == (4, keep > 9)
    rng = np.random.default_rng(rows)
    values = rng.integers(0, 12, rows).astype(np.float32) / 8
    matrix = np.abs(values[:, None] - values)
    valid = rng.random(rows) < 0.8
    assert np.array_equal(
        pick(with_clusters, matrix, valid, keep), np.sort(max_min_picks(matrix, valid, keep))
    )
    summed = pick(with_clusters, matrix, valid, keep, seed=3)
    assert np.array_equal(summed, np.sort(min_sum_picks(matrix, valid, 3, keep)))


def test_a_selection_that_clusters_share(with_clusters: ctypes.CDLL) -> None:
    """All of it: parts of tiles, picks, and clusters that copy, of two items."""
    case = Case("shared", random_tokens(33, (2, 2100, 8), "float16"), ragged(33, 2, 2100, 5), 5)
    assert abi.plan(with_clusters, problem_of(case), 90, 132).shards == 4
    assert_max_min(case, *emulate(with_clusters, case))


@pytest.mark.slow
def test_picks_of_more_rows_than_a_block_reads_at_once(emulated: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 12, 4097).astype(np.float32) / 8
    matrix = np.abs(values[:, None] - values)
    valid = rng.random(4097) < 0.8
    assert np.array_equal(pick(emulated, matrix, valid, 9), np.sort(max_min_picks(matrix, valid, 9)))


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_rule(emulated: ctypes.CDLL, dtype: str, budget: int) -> None:
    case = Case("sum", random_tokens(40, (3, 45, 64), dtype), ragged(40, 3, 45, 9), 9)
    seeds = np.array([np.flatnonzero(valid)[i] for i, valid in enumerate(case.valid)], np.int64)
    kept, indices = emulate(emulated, case, seeds, budget)
    assert_well_formed(case, kept, indices)
    for tokens, valid, seed, chosen in zip(case.tokens, case.valid, seeds, indices, strict=True):
        assert seed in chosen
        assert min_sum_regret(tokens, valid, int(seed), chosen) <= 1e-5


def test_seeds_outside_are_clamped(emulated: ctypes.CDLL) -> None:
    case = Case("seeds", random_tokens(41, (2, 20, 16), "float32"), np.ones((2, 20), np.bool_), 1)
    _, indices = emulate(emulated, case, np.array([-5, 10**12], np.int64))
    assert indices.tolist() == [[0], [19]]


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
def test_too_few_valid_rows_stay_in_bounds(emulated: ctypes.CDLL, budget: int) -> None:
    """The host refuses this; the kernel must still write K distinct indices and nothing else."""
    valid = np.zeros((1, 30), np.bool_)
    valid[0, [4, 9]] = True
    case = Case("few", random_tokens(42, (1, 30, 16), "float16"), valid, 5)
    _, indices = emulate(emulated, case, matrix_budget=budget)
    assert indices.tolist() == [[0, 1, 2, 4, 9]]


@pytest.mark.parametrize("budget", [0, MATRIX_FREE])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_tokens_that_are_no_numbers_stay_in_bounds(emulated: ctypes.CDLL, bad: float, budget: int) -> None:
    tokens = random_tokens(43, (1, 30, 16), "float32")
    tokens[0, [2, 5], 3] = bad
    case = Case("bad", tokens, np.ones((1, 30), np.bool_), 12)
    _, indices = emulate(emulated, case, matrix_budget=budget)
    assert np.all(np.diff(indices[0]) > 0)
    assert indices[0, 0] >= 0
    assert indices[0, -1] < 30


def test_only_indices(emulated: ctypes.CDLL) -> None:
    case = Case("indices", random_tokens(44, (1, 30, 16), "float32"), np.ones((1, 30), np.bool_), 5)
    _, wanted = emulate(emulated, case)
    problem = problem_of(case)
    tokens, workspace = aligned(case.tokens), garbage(abi.workspace_bytes(emulated, problem))
    indices = np.full((1, 5), -1, np.int64)
    status = emulated.divprune_max_min(
        problem,
        tokens.ctypes.data,
        None,
        None,
        indices.ctypes.data,
        workspace.ctypes.data,
        workspace.size,
        None,
    )
    assert status == 0
    assert np.array_equal(indices, wanted)


def pick(
    library: ctypes.CDLL,
    matrix: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    keep: int,
    seed: int | None = None,
) -> npt.NDArray[np.int64]:
    problem = abi.Problem(1, len(matrix), 8, keep, 0, 0, 2**63)
    workspace = garbage(abi.workspace_bytes(library, problem))
    seeds = None if seed is None else np.array([seed], np.int64)
    kept = np.full(keep, -1, np.int64)
    status = library.divprune_pick(
        problem,
        matrix.ctypes.data,
        valid.ctypes.data,
        None if seeds is None else seeds.ctypes.data,
        kept.ctypes.data,
        workspace.ctypes.data,
        workspace.size,
        None,
    )
    abi.check(library, status)
    return kept
