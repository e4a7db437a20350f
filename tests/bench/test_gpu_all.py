"""What is compared with a target is what the parts really write, and what went wrong is said."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_all
from bench.gpu_all import Runner
from bench.gpu_targets import TARGETS, UNCAPTURED, WARPGROUPS, line
from bench.selector_forms import SIZES
from divprune_edge.errors import UserError

NAMES = ("preprocess", "vision", "select", "prefill", "decode step")
"""As `runtime profile --json` calls them."""


def variant(ms: float, bound: float = 1.0) -> dict[str, Any]:
    stages = [
        {"stage": name, "ms": {"median": ms}, "roofline": None if name == "preprocess" else {"ms": bound}}
        for name in NAMES
    ]
    return {"stages": stages, "ttft_ms": {"median": 4 * ms}, "cold_ttft_ms": 8 * ms}


def result(ms: float) -> dict[str, Any]:
    """Of a GPU whose times are all ``ms``, 0.01 of which are good enough; other precisions take a millisecond."""
    good = ms < 1
    rows = [
        {
            "size": str(size),
            "us": {"kernel": 1000 * ms},
            "kernels_us": {"pick_kernel": 2.0},
            "floor_us": {"chain": 1.0},
            "launches": 2 if good else 4,
            "speedup": 80 if good else 20,
        }
        for size in SIZES
    ]
    dtypes = ("float16", "float32", WARPGROUPS)
    other = {"variants": [variant(1.0), variant(1.0)]}
    return {
        "selector": {dtype: {"rows": rows} for dtype in dtypes},
        "models": {
            "fp16": {"variants": [variant(ms), variant(ms, 1.0 if good else 2.0)]},
            UNCAPTURED: other,
            "int4": {"variants": [variant(ms if good else 2 * ms)] * 2},
        },
        "probe": {"step_bytes": 32 if good else 4096, "new_prefill_ms": ms},
        "eager": dict.fromkeys((*NAMES, "prefill unpruned"), 1.0),
    }


@pytest.mark.parametrize(("ms", "met"), [(0.01, True), (100.0, False)])
def test_every_target_finds_its_figure(ms: float, met: bool) -> None:
    judged = [target.judged(result(ms)) for target in TARGETS]
    wanted = [None if target.most is target.least is None else met for target in TARGETS]
    assert [one["met"] for one in judged] == wanted
    assert all(one["measured"] > 0 for one in judged)
    assert all(("MISS" in line(one)) == (wanted[at] is False) for at, one in enumerate(judged))


def test_nothing_is_said_of_a_cpu() -> None:
    judged = [target.judged(result(0.01), verdict=False) for target in TARGETS]
    assert not any("met " in line(one) or "MISS" in line(one) for one in judged)


def test_what_is_missing_is_said() -> None:
    for target in TARGETS:
        one = target.judged({"selector": {"float16": None}, "models": {"fp16": None}, "eager": None})
        assert one["met"] is None
        assert "not measured" in line(one)


@pytest.fixture
def saved() -> list[float]:
    return []


def runner(tmp_path: Path, saved: list[float], seconds: float = 60, limit: float = 60) -> Runner:
    return Runner(
        time.monotonic() + seconds, limit, tmp_path / "logs", {}, lambda: saved.append(time.monotonic())
    )


def script(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch, name: str = "part_of_it") -> str:
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return name


def test_a_part_that_hangs_leaves_what_it_said(
    tmp_path: Path, saved: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it hung."""
    code = "import time\nprint('half of it')\ndef forever():\n    time.sleep(100)\nforever()\n"
    run = runner(tmp_path, saved, limit=5)
    said = run("Half, of it", [script(tmp_path, code, monkeypatch)])
    assert said == (tmp_path / "logs" / "half-of-it.log").read_text()
    assert said.startswith("half of it")
    assert "in forever" in said
    assert "took more than 5 s" in run.failed["Half, of it"]
    assert len(saved) == 1


def test_all_parts_end_in_time(tmp_path: Path, saved: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A part gets what is left, and none is begun where nothing is."""
    monkeypatch.setattr(gpu_all, "LEAST", 0.5)
    module = script(tmp_path, "import time\ntime.sleep(100)\n", monkeypatch)
    run, began = runner(tmp_path, saved, seconds=2), time.monotonic()
    run("first", [module])
    run("second", [module])
    assert time.monotonic() - began < 50
    assert "took more than" in run.failed["first"]
    assert "no time" in run.failed["second"]


@pytest.mark.parametrize(
    ("body", "failed"), [("pass", False), ("pytest.skip('no GPU')", True), ("assert 0", True)]
)
def test_what_is_skipped_is_no_success(tmp_path: Path, saved: list[float], body: str, failed: bool) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(f"import pytest\ndef test_one():\n    pass\ndef test_two():\n    {body}\n")
    run = runner(tmp_path, saved)
    assert "passed" in run.tests("tests", str(file))
    assert bool(run.failed) == failed


def test_a_missing_library_is_no_success(
    tmp_path: Path, saved: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise UserError("There is no library.", code="library-missing")

    monkeypatch.setattr(gpu_all, "find_library", none)
    run, built = runner(tmp_path, saved), []
    monkeypatch.setattr(Runner, "__call__", lambda self, name, module: built.append(module))
    gpu_all.build(run)
    assert built == [["plugins", "build"]]
    assert run.failed == {"libraries": "There is no library."}


def test_the_result_is_there_after_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder that the environment names, whatever ends the process."""
    found = tmp_path / "gpu.json"
    monkeypatch.setenv("OUT", str(tmp_path))
    seen: list[Any] = []

    def part(command: list[str], **options: Any) -> Any:
        seen.append(json.loads(found.read_text()) if found.exists() else None)
        code = "import sys; sys.exit(3)" if "bench.selector" in command else ""
        return popen([sys.executable, "-c", code], **options)

    popen = subprocess.Popen
    monkeypatch.setattr(gpu_all.subprocess, "Popen", part)
    monkeypatch.setattr(gpu_all, "_machine", lambda: {"gpu": ""})
    assert gpu_all.main(["--tiny"]) == 1
    assert seen[0] is None
    assert all(one["targets"] for one in seen[1:])
    assert "exit code 3" in seen[2]["failed"]["selector, float16"]


def test_kernels_by_their_names() -> None:
    gpu_timing = pytest.importorskip("bench.gpu_timing")
    names = {
        "void divprune::pick_kernel<(divprune::Rule)0, 1>(divprune::PickArgs)": "pick_kernel",
        "divprune::(anonymous namespace)::append_kernel(divprune::AppendArgs)": "append_kernel",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)": None,
    }
    assert {name: gpu_timing.kernel_name(name) for name in names} == names
