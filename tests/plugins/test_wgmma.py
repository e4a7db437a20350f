"""The distances by Hopper's warpgroups, run by the emulator of what only sm_90a has, and what that emulator notices."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from plugins_emulation import (
    EMULATOR,
    SOURCE,
    compile_cpp,
    compile_hopper,
    distances,
    emulate,
    plain,
    problem_of,
)
from raising import refused
from selection_cases import Case, assert_max_min, ragged, random_tokens, special_cases

from divprune_edge.models.selectors.divprune import cosine_distances
from divprune_edge.plugins import abi

pytestmark = pytest.mark.xdist_group("emulated")
HALVES = ("float16", "bfloat16")
HOST = Path(__file__).with_name("wgmma_host.cpp")


@pytest.mark.parametrize("case", [c for dtype in HALVES for c in special_cases(dtype)], ids=str)
def test_special_cases(with_clusters: ctypes.CDLL, case: Case) -> None:
    assert_max_min(case, *emulate(with_clusters, case, product="wgmma"))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("shape", "parts"),
    [((1, 5, 8), 1), ((3, 65, 40), 1), ((1, 300, 136), 1), ((1, 130, 520), 2), ((1, 70, 2056), 4)],
)
def test_distances(with_clusters: ctypes.CDLL, shape: tuple[int, int, int], parts: int, dtype: str) -> None:
    """Rows and widths that fill no box, tiles below the diagonal, a half that no row is in, parts of a width."""
    case = Case("distances", random_tokens(30, shape, dtype), np.ones(shape[:2], np.bool_), 1)
    assert abi.plan(with_clusters, problem_of(case, product="wgmma"), 90, 132).parts == parts
    found = distances(with_clusters, case, "wgmma")
    for tokens, matrix in zip(case.tokens, found, strict=True):
        wanted = cosine_distances(tokens)
        np.fill_diagonal(wanted, 0)
        np.testing.assert_allclose(matrix, wanted, rtol=0, atol=1e-6)
    assert np.array_equal(found, found.transpose(0, 2, 1))


@pytest.mark.parametrize("budget", [0, 1])
@pytest.mark.parametrize("dtype", HALVES)
def test_the_order_of_threads_and_blocks_does_not_matter(
    with_clusters: ctypes.CDLL, dtype: str, budget: int
) -> None:
    """Nor whether copies and products are done at once or at the last moment."""
    case = Case("order", random_tokens(20, (2, 140, 776), dtype), ragged(20, 2, 140, 9), 9)
    results = []
    for schedule in range(4):
        with_clusters.divprune_emulator_schedule(schedule)
        kept, indices = emulate(with_clusters, case, matrix_budget=budget, product="wgmma")
        results.append(kept.tobytes() + indices.tobytes() + distances(with_clusters, case, "wgmma").tobytes())
    assert len(set(results)) == 1
    assert_max_min(case, kept, indices)


def test_the_sum_rule_and_the_launches(with_clusters: ctypes.CDLL) -> None:
    """The same two launches, and the same picks as of the other product."""
    case = Case("sum", random_tokens(40, (2, 150, 64), "float16"), ragged(40, 2, 150, 9), 9)
    seeds = np.array([np.flatnonzero(valid)[3] for valid in case.valid], np.int64)
    with_clusters.divprune_emulator_launches()
    results = [emulate(with_clusters, case, seeds, product=product)[1] for product in ("mma", "wgmma")]
    assert np.array_equal(*results)
    assert with_clusters.divprune_emulator_launches() == 4


def test_who_gets_it(with_clusters: ctypes.CDLL, emulated: ctypes.CDLL) -> None:
    """Whoever asks for it, where it is; nobody else, until it has run on a GPU."""
    half, whole = (
        Case("who", random_tokens(1, (1, 2880, 8), dtype), np.ones((1, 2880), np.bool_), 2)
        for dtype in ("float16", "float32")
    )
    wgmma = problem_of(half, product="wgmma")
    chosen = abi.plan(with_clusters, wgmma, 90, 132)
    assert (chosen.product, chosen.tile, chosen.columns) == (abi.PRODUCTS["wgmma"], 128, 256)
    assert chosen.tiles == 2 * (12 * 13 // 2), (
        "pairs of blocks, for each of them two rows of tiles and two columns"
    )
    for product in ("tuned", "mma"):
        problem = problem_of(half, product=product)
        assert abi.plan(with_clusters, problem, 90, 132).product == abi.PRODUCTS["mma"]
    assert abi.plan(with_clusters, problem_of(whole), 90, 132).product == 0
    for architecture in (87, 100, 120):
        with refused("kernel-arguments-invalid", "sm_90"):
            abi.plan(with_clusters, wgmma, architecture, 132)
    with refused("kernel-arguments-invalid", "sm_90"):
        emulate(emulated, half, product="wgmma")
    with refused("kernel-arguments-invalid", "16-bit"):
        emulate(with_clusters, whole, product="wgmma")


@dataclass(frozen=True)
class Mistake:
    """What could be wrong in a source, and a word of what the emulator says; "" where a distance is off."""

    file: str
    right: str
    wrong: str
    said: str

    def __str__(self) -> str:
        return f"{self.right} -> {self.wrong or 'nothing'}"


_PRODUCT, _HOPPER, _KERNEL = "product_wgmma.cuh", "hopper.cuh", "distances_wgmma.cuh"
_FREE = "stages.free[(step - 1) % kStages].wait((step - 1) / kStages % 2);"
MISTAKES = (
    # The descriptor.
    Mistake(_HOPPER, "kEightRows >> 4", "kRowBytes >> 4", ""),
    Mistake(_HOPPER, "1ull << 62", "2ull << 62", "order of 128 bytes"),
    Mistake(_HOPPER, "(address & 0x3ffff) >> 4", "(address & 0x3ffff)", "no field"),
    Mistake(_HOPPER, "1ull << 16", "1ull << 15", "no field"),
    Mistake(
        _KERNEL,
        "(kEightRows - shared_address(shared_bytes) % kEightRows) % kEightRows",
        "0",
        "begin on eight rows",
    ),
    Mistake(_PRODUCT, "matrix_at(columns + bytes)", "matrix_at(columns)", ""),
    Mistake(_PRODUCT, "shared_address(stage) + kSideBytes", "shared_address(stage)", ""),
    # Where sums are.
    Mistake(_PRODUCT, "lane / 4 + i / 2 % 2 * 8", "lane / 4 * 2 + i / 2 % 2", ""),
    Mistake(_PRODUCT, "i / 4 * 8 + lane % 4 * 2", "i / 4 * 2 + lane % 4 * 64", ""),
    Mistake(
        _PRODUCT,
        "threadIdx.x / kWarpgroup * 64 * kRowBytes",
        "threadIdx.x / kWarpgroup * 64",
        "begin on eight rows",
    ),
    # Waiting for products.
    Mistake(_PRODUCT, "warpgroup_fence();", "", "without a fence"),
    Mistake(_PRODUCT, "warpgroup_commit();", "", "ends while its products"),
    Mistake(_PRODUCT, "warpgroup_finish(sums_);", "", "ends while its products"),
    Mistake(_PRODUCT, "warpgroup_wait<1>();", "warpgroup_wait<2>();", ""),
    # Waiting for boxes, and boxes for those who read.
    Mistake(_PRODUCT, "stages.full[step % kStages].wait(step / kStages % 2);", "", "while a box comes"),
    Mistake(_PRODUCT, "wait(step / kStages % 2)", "wait(0)", "while a box comes"),
    Mistake(_PRODUCT, _FREE, "", "never comes"),
    Mistake(_PRODUCT, "fence_async_proxy();", "", "before a fence"),
    Mistake(_PRODUCT, "free[stage].init(2 * kWarps)", "free[stage].init(kWarps)", "never comes"),
    Mistake(_PRODUCT, "3u << rows.first_rank", "1u << rows.first_rank", "never comes"),
    Mistake(_PRODUCT, "full.expect(kStageBytes)", "full.expect(2 * kSideBytes)", "while a box comes"),
    Mistake(_KERNEL, "stages.init();\n    cluster_sync(blocks);", "stages.init();", "not initialized"),
    Mistake("hopper.cu", "CU_TENSOR_MAP_SWIZZLE_128B", "CU_TENSOR_MAP_SWIZZLE_NONE", ""),
    Mistake("hopper.cu", "kRowBytes / 2, kPairTile", "kRowBytes / 2, kPairTile / 2", "never comes"),
    # Norms of the other block's columns.
    Mistake(_KERNEL, "sides.side() == 0 ? own : half", "own", ""),
    Mistake(_KERNEL, "2 * four.column * kPairTile, begin", "2 * four.row * kPairTile, begin", ""),
)


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What the mistakes are not in, compiled once."""
    folder = tmp_path_factory.mktemp("rest")
    sources = [SOURCE / "max_min.cu", SOURCE / "plan.cpp", HOST, *EMULATOR.glob("*.cpp")]
    return [
        compile_hopper(folder / f"{source.name}.{at}.o", [source], SOURCE, "-c")
        for at, source in enumerate(sources)
    ]


def copy_of_the_sources(folder: Path, file: str = "", old: str = "", new: str = "") -> Path:
    """Copy the kernels' sources, with one change in one of them."""
    source = shutil.copytree(
        SOURCE, folder / "csrc", ignore=lambda at, names: [n for n in names if "." not in n]
    )
    if file:
        text = (source / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, old
        (source / file).write_text(text.replace(old, new), encoding="utf-8")
    return source


def run_with(folder: Path, rest: list[Path], mistake: Mistake | None) -> subprocess.CompletedProcess[str]:
    change = (mistake.file, mistake.right, mistake.wrong) if mistake else ()
    source = copy_of_the_sources(folder, *change)
    unit = compile_hopper(folder / "hopper.o", [source / "hopper.cu"], source, "-c", "-Wno-unused")
    program = compile_cpp(folder / "host", [unit, *rest], "-pthread")
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)


def test_the_sources_as_they_are_make_no_mistake(tmp_path: Path, rest: list[Path]) -> None:
    result = run_with(tmp_path, rest, None)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistakes_are_noticed(tmp_path: Path, rest: list[Path], mistake: Mistake) -> None:
    result = run_with(tmp_path, rest, mistake)
    assert result.returncode != 0
    assert (mistake.said or "distance") in result.stderr


@pytest.mark.slow
def test_the_table_turned(tmp_path: Path) -> None:
    """As it will be once this has run on a GPU: each size has the product that the model has faster."""
    source = copy_of_the_sources(tmp_path, "tuning.h", "{90, 1280, 1300, false,", "{90, 1280, 1300, true,")
    names = ("append_rows.cu", "hopper.cu", "max_min.cu", "plan.cpp", "status.cpp")
    sources = [*(source / name for name in names), *EMULATOR.glob("*.cpp")]
    library = plain(abi.load(compile_hopper(tmp_path / "turned.so", sources, source, "-shared")))
    chosen = [
        abi.plan(
            library, abi.Problem(1, rows, 4096, 58, abi.DTYPES[dtype], abi.PRODUCTS[product], 0), 90, 132
        ).product
        for rows, dtype, product in (
            (576, "float16", "tuned"),
            (2880, "float16", "tuned"),
            (2880, "bfloat16", "tuned"),
            (2880, "float16", "mma"),
            (2880, "float32", "tuned"),
        )
    ]
    assert chosen == [1, 2, 2, 1, 0]
    library.divprune_emulator_device(2)
    case = Case("turned", random_tokens(2, (1, 200, 512), "float16"), np.ones((1, 200), np.bool_), 5)
    assert abi.plan(library, problem_of(case), 90, 2).product == abi.PRODUCTS["wgmma"]
    assert distances(library, case).tobytes() == distances(library, case, "wgmma").tobytes()
    assert_max_min(case, *emulate(library, case))
