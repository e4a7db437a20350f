"""The header that host and device share, run on the host against the reference."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from ctypes import POINTER, c_float, c_int, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from plugins_emulation import ROOT, SOURCE, compile_cpp, need
from selection_cases import min_sum_picks

from divprune_edge.models.selectors.divprune import max_min_picks

pytestmark = pytest.mark.xdist_group("selection")
COVERAGE_FLOOR = 95.0
CASES = 1000


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return load(compile_host(tmp_path_factory.mktemp("selection")))


def compile_host(folder: Path, *flags: str) -> Path:
    source = ROOT / "tests" / "plugins" / "selection_host.cpp"
    return compile_cpp(folder / "libselection.so", [source], "-shared", "-fPIC", "-O1", f"-I{SOURCE}", *flags)


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.ordered_key.argtypes, library.ordered_key.restype = [c_float], c_uint32
    library.ordered_value.argtypes, library.ordered_value.restype = [c_uint32], c_float
    library.candidate_key.argtypes, library.candidate_key.restype = [c_float, c_uint32], c_uint64
    library.candidate_row.argtypes, library.candidate_row.restype = [c_uint64], c_uint32
    library.distance.argtypes, library.distance.restype = [c_float] * 3, c_float
    library.tile_at.argtypes = [c_int, c_int, POINTER(c_int), POINTER(c_int)]
    library.pick_max_min.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_int, c_void_p, c_void_p]
    library.pick_min_sum.argtypes = [c_void_p, c_int64, c_void_p, c_int, c_int, c_int64, c_void_p, c_void_p]
    return library


def picks(
    library: ctypes.CDLL,
    distances: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_] | None,
    keep: int,
    seed: int | None = None,
) -> npt.NDArray[np.int64]:
    rows = len(distances)
    found, values = np.full(keep, -1, np.int64), np.empty(rows, np.float32)
    mask = None if valid is None else valid.ctypes.data
    middle = [] if seed is None else [seed]
    function = library.pick_max_min if seed is None else library.pick_min_sum
    function(distances.ctypes.data, rows, mask, rows, keep, *middle, values.ctypes.data, found.ctypes.data)
    return found


def random_matrix(seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], int]:
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(1, 40))
    coarse = rng.integers(0, 6, (rows, rows)).astype(np.float32) / 4  # ties everywhere
    half = np.triu(coarse if seed % 2 else rng.random((rows, rows), np.float32) * 2, 1)
    valid = rng.random(rows) < 0.8
    valid[rng.integers(rows)] = True
    return half + half.T, valid, int(rng.integers(1, valid.sum() + 1))


def exercise(library: ctypes.CDLL, cases: int) -> None:
    """Exact picks, in the order in which they are made."""
    for seed in range(cases):
        matrix, valid, keep = random_matrix(seed)
        assert np.array_equal(picks(library, matrix, valid, keep), max_min_picks(matrix, valid, keep)), seed
        start = int(np.flatnonzero(valid)[0])
        wanted = min_sum_picks(matrix, valid, start, keep)
        assert np.array_equal(picks(library, matrix, valid, keep, start), wanted), seed
    everything = np.ones(len(matrix), np.bool_)
    assert np.array_equal(picks(library, matrix, None, 1), max_min_picks(matrix, everything, 1))
    assert picks(library, matrix, None, 1, -7)[0] == 0
    assert picks(library, matrix, None, 1, 10**9)[0] == len(matrix) - 1


def exercise_keys(library: ctypes.CDLL) -> None:
    values = np.array([-4.0, -1e-7, -0.0, 0.0, 1e-45, 1e-7, 1.0, 1.0000001, 2.0, 4.0], np.float32)
    keys = [library.ordered_key(value) for value in values]
    assert keys == sorted(keys)
    assert keys[2] == keys[3]
    assert [library.ordered_value(key) for key in keys] == values.tolist()
    smaller, larger, later = (library.candidate_key(v, i) for v, i in ((0.5, 0), (0.75, 9), (0.75, 10)))
    assert smaller < later < larger, "the larger value first, among equals the smaller index"
    assert [library.candidate_row(key) for key in (smaller, larger, later)] == [0, 9, 10]
    tiny = float(np.finfo(np.float32).tiny)
    assert library.distance(0.0, tiny, tiny) == 1.0
    assert library.distance(3.0, 2.0, 3.0) == 0.5
    row, column = c_int(), c_int()
    for side in (*range(1, 20), 49):
        tiles = []
        for index in range(side * (side + 1) // 2):
            library.tile_at(index, side, row, column)
            tiles.append((row.value, column.value))
        assert sorted(tiles) == [(r, c) for r in range(side) for c in range(r, side)], "each once"
        assert all(len({c for _, c in tiles[at : at + 8]}) <= 8 for at in range(len(tiles)))
    # Of 49 columns, 32 tiles at a time need few rows and columns.
    needed = [len({*sum(tiles[at : at + 32], ())}) for at in range(0, len(tiles), 32)]
    assert sum(needed) < 15 * len(needed), "walking down one column after the other needs 33"


def test_picks_are_those_of_the_reference(host: ctypes.CDLL) -> None:
    exercise(host, CASES)


def test_keys_and_tiles(host: ctypes.CDLL) -> None:
    exercise_keys(host)


def test_distances_that_are_no_numbers_are_passed_over(host: ctypes.CDLL) -> None:
    matrix = np.full((6, 6), np.nan, np.float32)
    for seed in (None, 2):
        found = picks(host, matrix, None, 6, seed)
        assert sorted(found.tolist()) == list(range(6))


def test_coverage_of_the_shared_header(tmp_path: Path) -> None:
    """A line of the header that no test runs is a line of the kernel that nobody has seen work."""
    need("gcov")
    library = compile_host(tmp_path, "--coverage", "-O0", "-fno-inline")
    code = (
        "import sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}, {str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path\n"
        "import test_selection as t\n"
        f"library = t.load(Path({str(library)!r}))\n"
        "t.exercise(library, 30)\n"
        "t.exercise_keys(library)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    data = next(tmp_path.rglob("*.gcda"))
    report = subprocess.run(
        ["gcov", "--no-output", "--object-directory", str(data.parent), data.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = re.search(r"File '[^']*selection\.h'\nLines executed:([\d.]+)% of (\d+)", report)
    assert found is not None, report
    print(f"selection.h: {found.group(1)} % of {found.group(2)} lines")
    assert float(found.group(1)) >= COVERAGE_FLOOR
