"""The model of a selection on a GPU that is not at hand: what it counts, and that the docs have what it says."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
from bench.kernel_model import GPUS, forecast, main, products, rows_from_memory, shared_cycles, table
from bench.selector_forms import SIZES, Size
from divprune_edge.plugins import abi

pytestmark = pytest.mark.xdist_group("emulated")
GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "plugin.md").read_text(encoding="utf-8")
H200, ORIN = GPUS[:2]


def test_what_is_counted(emulated: ctypes.CDLL) -> None:
    """45 tiles of 64 of 576 rows of 4096 float16; every tile reads both its sides."""
    found = forecast(emulated, ORIN, Size(576, 58, 4096), "float16")
    assert (found.tile, found.parts, found.shards) == (64, 1, 1)
    assert found.read_mb == pytest.approx(45 * 128 * 4096 * 2 / 1e6)
    assert found.gflop == pytest.approx(45 * 64 * 64 * 4096 * 2 / 1e9)
    assert found.memory_mb == pytest.approx((576 * 8192 + 4 * 576**2) / 1e6), (
        "48 tiles are multiplied side by side"
    )
    parts = found.distances + found.picks + found.copies
    assert parts < found.total < parts + 10


def test_rows_that_come_again(emulated: ctypes.CDLL) -> None:
    """No cache of an Orin holds 2880 tokens: 32 of 276 large tiles at a time need 8 and 4 of 23 sides."""
    plan = abi.plan(emulated, abi.Problem(1, 2880, 4096, 288, 1, 0, 0), 87, 16)
    assert plan.tile == 128
    assert rows_from_memory(ORIN, plan, 2880, 8192) == 9 * 12 * 128
    assert rows_from_memory(H200, plan, 2880, 8192) == 2880


def test_what_warpgroups_change(emulated: ctypes.CDLL) -> None:
    """Pairs of blocks read half as much for the same distances; few tokens leave most of the GPU idle."""
    large, small = Size(6272, 627, 3584), Size(576, 58, 4096)
    tuned, wgmma = (
        forecast(emulated, H200, large, "float16", product) for product in products(H200, "float16")
    )
    assert (tuned.product, wgmma.product) == ("mma", "wgmma")
    assert wgmma.read_mb == pytest.approx(25 * 26 * 2 * 128 * 3584 * 2 / 1e6)
    assert wgmma.gflop == pytest.approx(25 * 26 * 128 * 256 * 3584 * 2 / 1e9)
    assert wgmma.read_mb < 0.6 * tuned.read_mb
    assert wgmma.distances < tuned.distances
    assert forecast(emulated, H200, small, "float16", "wgmma").distances > (
        forecast(emulated, H200, small, "float16").distances
    )
    assert products(ORIN, "float16") == products(H200, "float32") == ("tuned",)
    plan = abi.plan(emulated, abi.Problem(1, 8765, 3584, 876, 1, abi.PRODUCTS["wgmma"], 0), 90, 132)
    assert rows_from_memory(H200, plan, 8765, 7168) == 10 * 256 * (8 + 9), "66 pairs at a time, 630 of them"


def test_shared_memory_can_be_what_takes_longest(emulated: ctypes.CDLL) -> None:
    """45 tiles of 64 by 16 multiprocessors: in each, 1 KiB a value; four warps of 64 rows and columns, and 256 more."""
    plan = abi.plan(emulated, abi.Problem(1, 576, 4096, 58, 1, 0, 0), 87, 16)
    assert shared_cycles(ORIN, plan, 4096) == 3 * 4096 * 1024 / 128 > plan.cycles
    found = forecast(emulated, ORIN, Size(576, 58, 4096), "float16")
    assert found.distances == pytest.approx(3 * 4096 * 8 / ORIN.clock / 1e3)
    assert forecast(emulated, ORIN, Size(576, 58, 4096), "float32").distances > 2 * found.distances


def test_the_table_of_the_docs(emulated: ctypes.CDLL) -> None:
    forms = [(gpu, product) for gpu in (H200, ORIN) for product in products(gpu, "float16")]
    rows = [forecast(emulated, gpu, size, "float16", product) for gpu, product in forms for size in SIZES[:5]]
    assert "\n".join(table(rows)) in GUIDE
    assert "\n".join(table([forecast(emulated, H200, SIZES[0], "float32")])).splitlines()[-1] in GUIDE


def test_the_command(emulated: ctypes.CDLL, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.json"
    main(["--library", emulated._name, "--gpu", "NX", "--json", str(output)])
    assert [row["gpu"] for row in json.loads(output.read_text())] == ["Orin NX 16GB"] * 5
    assert capsys.readouterr().out.count("Orin NX") == 5
