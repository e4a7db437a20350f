"""``--target``: what it settles, what it refuses, and the forecast before an export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from exporting import plan_of
from raising import assert_told, refused

from divprune_edge.console import run
from divprune_edge.export import targets as module
from divprune_edge.export.cli import app
from divprune_edge.export.targets import check_memory, settle, target_of
from divprune_edge.manifest import read_manifest
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.targets import TARGETS


@pytest.mark.parametrize(
    ("target", "dialect", "precision", "settled"),
    [
        (None, None, None, ("portable", "fp32")),
        (None, "static", None, ("static", "fp32")),
        ("cpu", None, None, ("onnxruntime", "int8")),
        ("cuda", None, None, ("onnxruntime", "fp16")),
        ("cuda", "portable", "fp32", ("portable", "fp32")),
        ("orin-nano-8gb", None, None, ("decomposed", "vision=fp16,language=int4")),
        ("orin-nano-8gb", None, "fp32", ("decomposed", "fp32")),
        ("agx-orin-64gb", None, None, ("decomposed", "fp16")),
        ("agx-orin-64gb-jp7", None, None, ("static", "fp16")),
        ("h100", "decomposed", None, ("decomposed", "fp16")),
        (None, None, "language=int4", ("portable", "vision=fp32,language=int4")),
        ("agx-orin-64gb", None, "language=int4", ("decomposed", "vision=fp16,language=int4")),
        ("cpu", None, "vision=fp32", ("onnxruntime", "vision=fp32,language=int8")),
    ],
)
def test_what_a_target_settles(
    target: str | None, dialect: str | None, precision: str | None, settled: tuple[str, str]
) -> None:
    assert settle(target, dialect, precision) == settled


@pytest.mark.parametrize(
    ("target", "dialect", "precision", "told"),
    [
        (
            "orin-nano-8gb",
            "portable",
            None,
            ("dialect-with-target", "--dialect portable", "--target orin-nano-8gb", "TensorRT 10.3"),
        ),
        (
            "orin-nano-8gb",
            "static",
            None,
            ("dialect-with-target", "TensorRT 10.3", "TensorScatter", "give decomposed"),
        ),
        ("h100", "onnxruntime", None, ("dialect-with-target", "ONNX Runtime", "static or decomposed")),
        (
            "h100",
            None,
            "int8",
            ("precision-with-target", "--precision int8", "--target h100", "MatMulInteger"),
        ),
        (
            "thor",
            None,
            "vision=int8,language=fp16",
            ("precision-with-target", "--precision vision=int8,language=fp16", "--target thor"),
        ),
        ("cuda", None, "int8", ("precision-with-target", "ONNX Runtime", "CUDA")),
        ("cuda", None, "fp32", ("precision-with-dialect", "float16")),
        ("orin", None, None, ("target-unknown", "'orin'")),
        ("h100", None, "fp17", ("precision-unknown", "--precision fp17")),
    ],
)
def test_contradictions_are_one_sentence(
    target: str, dialect: str | None, precision: str | None, told: tuple[str, ...]
) -> None:
    with refused(*told) as caught:
        settle(target, dialect, precision)
    assert "\n" not in str(caught.value)


def test_int4_goes_with_cuda() -> None:
    assert settle("cuda", None, "language=int4") == ("onnxruntime", "vision=fp16,language=int4")


def test_what_is_settled_can_be_planned() -> None:
    for name in TARGETS:
        dialect, precision = settle(name, None, None)
        plan = plan_of(CHECKPOINT, keep=58, dialect=dialect, precision=precision, target=name)
        assert plan.target == name
        assert (plan.capacity is None) == (TARGETS[name].tensorrt is None)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run ``export`` in this process; return (exit code, output, errors)."""
    with pytest.raises(SystemExit) as ended:
        run(app, [str(argument) for argument in arguments], program="python -m export")
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_manifest_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "b"
    code, output, errors = command(
        capsys, "llava", "--target", "orin-nx-16gb", "--no-verify", "--output", folder
    )
    assert code == 0, errors
    assert "Forecast (E2): 1.0" in output
    manifest = read_manifest(folder)
    assert manifest.target == "orin-nx-16gb"
    assert manifest.language_model.dialect == "decomposed"
    assert manifest.precision == "vision=fp16,language=int4"
    assert target_of(folder, None) is TARGETS["orin-nx-16gb"]
    assert target_of(folder, "h100") is TARGETS["h100"]
    code, output, errors = command(capsys, "check", folder, "--json")
    assert code == 0, output + errors
    assert json.loads(output)["target"] == "orin-nx-16gb"
    assert command(capsys, "check", folder, "--target", "nano")[0] == 2


def test_a_bundle_for_no_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "b"
    command(capsys, "llava", "--no-verify", "--output", folder)
    assert read_manifest(folder).target is None
    code, _, errors = command(capsys, "check", folder)
    assert_told(code, errors, "target-not-given", folder, "cpu, cuda", "--target")
    assert command(capsys, "check", folder, "--target", "orin-nano-8gb")[0] == 1, (
        "portable, for TensorRT 10.3"
    )


def test_a_contradiction_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, errors = command(
        capsys, "llava", "--target", "h100", "--precision", "int8", "--output", tmp_path / "b"
    )
    assert_told(code, errors, "precision-with-target", "--precision int8", "--target h100")
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def with_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    tiny = replace(TARGETS["orin-nano-8gb"], memory_bytes=size)
    monkeypatch.setitem(TARGETS, "orin-nano-8gb", tiny)


def test_the_forecast_before_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(CHECKPOINT, keep=58, dialect="decomposed", precision="fp16", target="orin-nano-8gb")
    assert str(check_memory(plan, TARGETS["orin-nano-8gb"])).startswith("Forecast (E2): 1.0")
    system = int(1.5 * 2**30)
    with_memory(monkeypatch, system + (1 << 30))
    sentence = check_memory(plan, TARGETS["orin-nano-8gb"])
    assert sentence is not None
    assert sentence.startswith("It will hardly fit. This takes 1.0"), "what is assumed of TensorRT decides"
    with_memory(monkeypatch, system + (1 << 20))
    with refused("target-memory-too-small"):
        module.announce_memory(plan)


def test_targets_without_memory_say_nothing() -> None:
    plan = plan_of(CHECKPOINT, target="cpu")
    assert check_memory(plan, TARGETS["cpu"]) is None
