"""``export check`` where TensorRT-RTX is installed: its parser and builder are asked, and heard."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import run_module
from exporting import Bundle
from raising import failed

from divprune_edge.export.check import asked
from divprune_edge.export.check.asked import GraphAnswer, RtxAnswers, ask_tensorrt
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.export.check.printing import show_report
from divprune_edge.export.check.rtx import answer_findings
from divprune_edge.models.targets import TARGETS
from divprune_edge.models.tensorrt import TENSORRT_RTX

Demo = Callable[..., Bundle]
real = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="unproven: no TensorRT-RTX (pip install '.[rtx]')",
)
REFUSAL = "Setting softmax precision is not supported"


def check(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command in a process of its own; return its exit code and what it said."""
    done = run_module("export", "check", str(folder), "--json", *options)
    assert done.stderr == "", done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def spoilt(demo: Demo, tmp_path: Path) -> Path:
    """A bundle as it was written when attention named the precision of its softmax."""
    folder = Path(shutil.copytree(demo("static").folder, tmp_path / "spoilt"))
    path = folder / "language_model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("softmax_precision", onnx.TensorProto.FLOAT))
    onnx.save(model, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["language_model.onnx"] = {
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@real
@pytest.mark.parametrize(
    ("dialect", "target", "sms"),
    [
        ("static", "thor", [89]),
        ("static", "a100", [80]),
        ("static", "rtx5090", [120]),
        ("static", "rtx", list(TENSORRT_RTX.sms)),
        ("decomposed", "orin-nano-8gb", [86]),
    ],
)
def test_every_graph_is_built(demo: Demo, dialect: str, target: str, sms: list[int]) -> None:
    bundle = demo(dialect)
    code, said = check(bundle.folder, "--target", target)
    assert (code, said["clean"]) == (0, True), said["findings"]
    asked = said["tensorrt_rtx"]
    assert asked["library"].startswith("TensorRT-RTX 1.")
    assert (asked["sms"], asked["unbuilt"]) == (sms, None)
    # Of a selector, the file that has its local function: TensorRT-RTX takes no plugin.
    assert {one["file"] for one in asked["answers"]} == {
        "vision_encoder.onnx",
        "language_model.onnx",
        *(path.relative_to(bundle.folder).as_posix() for path in bundle.folder.glob("selectors/*.onnx")),
    }
    assert all(one["size"] > 1000 and one["words"] is None for one in asked["answers"])
    assert "E2b, parsed and built by TensorRT-RTX" in said["evidence"]
    own = target.startswith("rtx")
    listed = {one["file"] for one in said["graphs"]}
    assert listed == {one["file"] for one in asked["answers"]} or not own
    assert ("which proves no engine of TensorRT 10." in said["evidence"]) == (not own)
    assert ("E2, held against" in said["evidence"]) == (not own)


@real
@pytest.mark.parametrize("target", ["thor", "h100", "rtx4090"])
def test_what_the_parser_refuses_is_an_error_in_its_words(spoilt: Path, target: str) -> None:
    for more in ((), ("--no-build",)):
        code, said = check(spoilt, "--target", target, *more)
        assert (code, said["clean"]) == (1, False)
        (refusal,) = (one for one in said["findings"] if REFUSAL in one["message"])
        assert (refusal["graph"], refusal["severity"]) == ("language_model.onnx", "error")
        assert refusal["rule"].startswith("TensorRT-RTX")
        assert "E2b" not in said["evidence"]
        # The generated tables of attributes say it, too, where they are asked.
        assert any(one["rule"] == "attribute" for one in said["findings"]) == (target != "rtx4090")


@real
def test_parsed_and_not_built(demo: Demo) -> None:
    code, said = check(demo("static").folder, "--target", "rtx4090", "--no-build")
    assert code == 0
    assert said["tensorrt_rtx"]["unbuilt"] == "--no-build"
    assert {one["size"] for one in said["tensorrt_rtx"]["answers"]} == {None}
    assert "E2b" not in said["evidence"]


@real
def test_too_little_memory_to_build(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, python: Callable[[str], str]
) -> None:
    """Parsing goes on."""
    monkeypatch.setattr(asked.sys, "executable", python("facts.host_memory = lambda: (1000, 0)"))
    said = ask_tensorrt(demo("static").folder, TARGETS["rtx4090"])
    assert "Building the largest engine takes at least" in (said.unbuilt or "")
    assert all(answer.words is None and answer.size is None for answer in said.answers)


@real
def test_a_builder_that_ends_its_process_ends_no_check(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, python: Callable[[str], str], tmp_path: Path
) -> None:
    """As it did for a graph of an older release. The other graphs are asked about, and nothing is left behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("divprune_edge.export.check.bundle.is_installed", lambda: True)
    crash = (
        "lambda job, *rest: os.kill(os.getpid(), 11) if job.name == 'language_model' else make(job, *rest)"
    )
    monkeypatch.setattr(asked.sys, "executable", python(f"compile.make_engine = {crash}"))
    report = check_bundle(demo("static").folder, TARGETS["a100"])
    (found,) = (one for one in report.findings if one.severity == "error")
    assert found.graph == "language_model.onnx"
    assert found.message == "TensorRT-RTX ended the process that asked it: Segmentation fault"
    assert report.asked is not None
    others = [answer for answer in report.asked.answers if answer.file != "language_model.onnx"]
    assert len(others) > 1 and all((answer.size or 0) > 1000 for answer in others)
    assert not list(tmp_path.glob("divprune-check-*"))


@real
def test_a_fault_at_the_end_is_no_graphs(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, python: Callable[[str], str]
) -> None:
    line = "import atexit; atexit.register(lambda: os.kill(os.getpid(), 11))"
    monkeypatch.setattr(asked.sys, "executable", python(line))
    said = ask_tensorrt(demo("static").folder, TARGETS["rtx4090"], build=False)
    assert said.answers and all(answer.words is None for answer in said.answers)


@real
def test_a_second_process_that_does_not_start(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, python: Callable[[str], str], tmp_path: Path
) -> None:
    """What the first one said is not taken for the second's."""
    once = tmp_path / "once"
    line = (
        f"once = __import__('pathlib').Path({str(once)!r}); once.exists() and sys.exit('no memory'); once.touch(); "
        "compile.check_graph = lambda job: job.name == 'vision_encoder' and os.kill(os.getpid(), 11)"
    )
    monkeypatch.setattr(asked.sys, "executable", python(line))
    with failed("tensorrt-ended", "no memory"):
        ask_tensorrt(demo("static").folder, TARGETS["rtx4090"], build=False)


@real
def test_a_process_that_does_not_start(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, python: Callable[[str], str]
) -> None:
    monkeypatch.setattr(asked.sys, "executable", python("raise ImportError('libcudart.so is missing')"))
    with failed("tensorrt-ended", "ImportError: libcudart.so is missing"):
        ask_tensorrt(demo("static").folder, TARGETS["rtx4090"])


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], str]:
    """Return a Python that does something to the asking process before it asks."""

    def make(line: str) -> str:
        path = tmp_path / "python"
        path.write_text(
            f"#!{sys.executable}\n"
            "import os, sys\n"
            f"sys.path[:0] = {sys.path!r}\n"
            "os.environ['POLYGRAPHY_USE_TENSORRT_RTX'] = '1'\n"
            "from divprune_edge.export.check import asking\n"
            "from divprune_edge.runtime.engines import compile, facts\n"
            f"make = compile.make_engine\n{line}\nasking.main(*sys.argv[3:])\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


def test_not_installed_is_said(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("thor", "rtx4090"):
        report = check_bundle(demo("static").folder, TARGETS[target])
        assert (report.asked, report.clean) == (None, True)
        show_report(report)
        said = " ".join(capsys.readouterr().out.split())
        assert ("┃ plugin ┃" in said) == (target == "thor"), (
            "a column without a head or an entry tells nothing"
        )
        assert "TensorRT-RTX was not asked: its parser and builder need no GPU, but" in said
        assert "not installed: python -m pip install -e '.[rtx]' in the clone." in said
        unknown = [
            one for one in report.findings if "nothing is known of what TensorRT-RTX takes" in one.message
        ]
        assert len(unknown) == (target == "rtx4090")


def test_an_answer_becomes_a_finding() -> None:
    answers = (GraphAnswer("a.onnx", 1.0, 10), GraphAnswer("b.onnx", words="No."))
    (found,) = answer_findings(RtxAnswers("TensorRT-RTX 9", (89,), answers))
    assert (found.graph, found.severity, found.rule, found.message) == (
        "b.onnx",
        "error",
        "TensorRT-RTX 9",
        "No",
    )


@pytest.mark.parametrize(("dialect", "precision"), [("portable", "fp16"), ("portable", "int8")])
def test_what_is_not_for_tensorrt_is_refused_on_an_rtx_card(demo: Demo, dialect: str, precision: str) -> None:
    report = check_bundle(demo(dialect, precision).folder, TARGETS["rtx4090"])
    assert report.unasked == "dialect portable on GeForce RTX 4090 24GB is not for TensorRT"
    rules = [one.rule for one in report.findings if one.severity == "error"]
    assert rules == ["dialect"] + ["dtype"] * (2 * (precision == "int8"))
