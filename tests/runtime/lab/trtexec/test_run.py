"""``--run`` and ``--read`` over a program that only pretends to be trtexec and writes made-up figures."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from raising import assert_told
from trtexec_made_up import made_up_layers, made_up_profile, made_up_times

Get = Callable[[str], Path]

FAKE_TRTEXEC = f"""#!{sys.executable}
# Not trtexec: it knows its options from the tables, checks that files are there, and makes its figures up.
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from divprune_edge.runtime.lab.trtexec.options import unknown_options
from trtexec_made_up import made_up_layers, made_up_profile, made_up_times

print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec " + " ".join(sys.argv[1:]))
if "--help" in sys.argv:
    sys.exit(0)
unknown = unknown_options("10.3.0", sys.argv[1:])
options = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
missing = [part.rsplit(":", 1)[1] for part in options.get("--loadInputs", "").split(",") if part]
missing += [options[name] for name in ("--onnx", "--loadEngine") if name in options]
missing = [path for path in missing if not Path(path).is_file()]
if unknown or missing or "FAIL" in options.get("--saveEngine", ""):
    print(f"[11/21/2026-12:00:00] [E] Unknown or missing: {{unknown}} {{missing}}")
    sys.exit(1)
if "--saveEngine" in options:
    Path(options["--saveEngine"]).write_text("no engine")
    sys.exit(0)
layers = {{f"/language_model/layers.{{i}}/mlp/down_proj/MatMul": 0.75 for i in range(2)}}
Path(options["--exportTimes"]).write_text(made_up_times([2.0, 2.0, 2.5]))
Path(options["--exportProfile"]).write_text(made_up_profile(layers))
Path(options["--exportLayerInfo"]).write_text(made_up_layers(list(layers)))
"""


@pytest.fixture
def fake_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "trtexec"
    program.write_text(FAKE_TRTEXEC)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return program


@pytest.fixture
def orin_bundle(dialect_bundle: Get, tmp_path: Path) -> Path:
    """A copy that says that it was made for an Orin, so that rooflines can be drawn."""
    copy = Path(shutil.copytree(dialect_bundle("decomposed"), tmp_path / "orin"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "target": "agx-orin-64gb"}))
    return copy


def test_run_and_read_again(
    command: Any, orin_bundle: Path, library: Path, fake_trtexec: Path, tmp_path: Path
) -> None:
    out, file, page = tmp_path / "out", tmp_path / "r.json", tmp_path / "r.html"
    options = ("--library", library, "--output", out, "--json", file, "--html", page)
    result = command("trtexec", orin_bundle, "--run", *options)
    assert result.code == 0, result.err
    assert "7 of 7: measure decode" in result.err
    assert sorted(path.name for path in out.glob("*.log")) == [
        *("build-divprune-58.log", "build-language_model.log", "build-vision_encoder.log"),
        *("measure-decode.log", "measure-prefill.log", "measure-select.log", "measure-vision.log"),
    ]
    report = json.loads(file.read_text())
    assert [engine["stage"] for engine in report["engines"]] == ["vision", "select", "prefill", "decode"]
    decode = report["engines"][-1]
    assert (decode["compute_ms"]["median"], decode["layer_sum_ms"]) == (2.0, 1.5)
    assert decode["difference_ms"] == 0.5
    assert decode["modules"] == [{"module": "/language_model/layers.*/mlp/down_proj", "layers": 2, "ms": 1.5}]
    assert decode["roofline"]["by"] == "memory"
    assert decode["ratio"] == pytest.approx(2.0 / decode["roofline"]["ms"], rel=1e-3)
    assert "+0.500 ms (+25.0 %): launches and gaps" in result.out
    assert report["about"]["TensorRT"] == "10.3.0"
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 4
    assert "src=" not in html
    again = command("trtexec", "--read", out)
    assert again.code == 0, again.err
    assert "decode: 2 layers sum to 1.50 ms" in again.out


@pytest.mark.parametrize(
    ("compute", "layers", "enqueue", "part"),
    [
        ([1.0] * 5, {"a": 1.01}, 0.1, "within the noise"),
        ([1.0] * 5, {"a": 1.5}, 0.1, "-0.500 ms (-50.0 %): timing each layer keeps them from overlapping"),
        ([1.0] * 5, {"a": 0.5}, 0.9, "the host takes 0.900 ms to queue"),
        ([1.0] * 5, {"a": 0.5}, 0.1, "launches and gaps between kernels"),
        ([1.0] * 5, {"a": 0.0}, 0.1, "sum to 0.000 ms"),
    ],
)
def test_layers_and_whole_are_reconciled(
    command: Any, tmp_path: Path, compute: list[float], layers: dict[str, float], enqueue: float, part: str
) -> None:
    measured(tmp_path, compute, layers, enqueue)
    result = command("trtexec", "--read", tmp_path)
    assert result.code == 0, result.err
    assert part in result.out


def measured(folder: Path, compute: list[float], layers: dict[str, float], enqueue: float) -> None:
    """A folder of one stage with made-up figures."""
    stage = {"name": "vision", "engine": "vision_encoder"}
    facts = {"bundle": "b", "tensorrt": "10.3", "target": None, "precision": "fp16", "visual_tokens": 58}
    record = {**facts, "prompt_tokens": None, "stages": [stage]}
    (folder / "trtexec.json").write_text(json.dumps(record))
    (folder / "vision.times.json").write_text(made_up_times(compute, enqueue))
    (folder / "vision.profile.json").write_text(made_up_profile(layers))
    (folder / "vision.layers.json").write_text(made_up_layers(list(layers)))


def test_folders_that_cannot_be_read(command: Any, tmp_path: Path) -> None:
    def told(code: str, file: str) -> None:
        result = command("trtexec", "--read", tmp_path)
        assert_told(result.code, result.err, code, file)
        assert result.err.count("\n") == 1

    told("measurements-missing", "trtexec.json")
    measured(tmp_path, [1.0], {"a": 1.0}, 0.1)
    (tmp_path / "vision.profile.json").write_text("[ {")
    told("measurements-invalid", "vision.profile.json")
    (tmp_path / "vision.times.json").unlink()
    told("measurements-missing", "vision.times.json")
    (tmp_path / "trtexec.json").write_text("{}")
    told("measurements-invalid", "trtexec.json")


def test_a_command_that_fails(
    command: Any, orin_bundle: Path, library: Path, fake_trtexec: Path, tmp_path: Path
) -> None:
    result = command("trtexec", orin_bundle, "--run", "--library", library, "--output", tmp_path / "FAIL")
    said = ("build vision_encoder", "Unknown or missing", "build-vision_encoder.log")
    assert_told(result.code, result.err, "trtexec-failed", *said, expected=1)


def test_another_version_than_the_programs(
    command: Any, orin_bundle: Path, fake_trtexec: Path, tmp_path: Path
) -> None:
    result = command("trtexec", orin_bundle, "--run", "--tensorrt", "10.16", "--output", tmp_path)
    assert_told(
        result.code, result.err, "tensorrt-version-mismatch", "--tensorrt is 10.16", "TensorRT 10.3.0"
    )


def test_a_program_that_tells_no_version(
    command: Any, orin_bundle: Path, fake_trtexec: Path, tmp_path: Path
) -> None:
    fake_trtexec.write_text("#!/bin/sh\nexit 127\n")
    result = command("trtexec", orin_bundle, "--run", "--output", tmp_path)
    assert_told(result.code, result.err, "trtexec-not-starting", fake_trtexec, expected=1)
    assert result.err.count("\n") == 1
