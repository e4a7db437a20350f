"""Bundles for images of any size against targets: operators of TensorRT's versions, and the memory of the largest."""

from __future__ import annotations

import importlib.util
from math import prod
from pathlib import Path

import pytest
from exporting import Bundle, export, plan_of
from qwen_checkpoints import QWEN, make_qwen_checkpoint

from divprune_edge.export.check.asked import ask_tensorrt
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.export.check.graph import read_graph
from divprune_edge.export.check.liveness import live_activations
from divprune_edge.export.targets import forecast_plan
from divprune_edge.models.targets import TARGETS
from divprune_edge.processing.patches import held_dimensions, most_dimensions

WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = "64x40,40x64,56x48"


@pytest.fixture(scope="module", params=[(f, d) for f in QWEN for d in ("static", "decomposed")], ids="-".join)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    family, dialect = request.param
    folder = tmp_path_factory.mktemp(family)
    checkpoint = make_qwen_checkpoint(folder / "checkpoint", family=family, text=WIDE)
    plan = plan_of(checkpoint, 9, dialect=dialect, precision="fp16", resolution=SIZES, capacity=128)
    return export(plan, folder / "bundle")


def targets_of(bundle: Bundle) -> list[str]:
    newer = ["thor", "h100", "rtx4090"]
    return newer if bundle.manifest.language_model.dialect == "static" else ["orin-nano-8gb", *newer]


def test_nothing_is_against_it(bundle: Bundle) -> None:
    """Neither the lists of TensorRT 10.1 with what 10.3 adds, and of 10.15, nor their checkers of attributes."""
    for name in targets_of(bundle):
        report = check_bundle(bundle.folder, TARGETS[name], build=False)
        assert report.clean, (name, report.findings)
        assert name == "rtx4090" or not report.findings, name


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="unproven: no TensorRT-RTX (pip install '.[rtx]')",
)
def test_every_graph_is_built(bundle: Bundle) -> None:
    answers = ask_tensorrt(bundle.folder, TARGETS["rtx4090"]).answers
    assert {answer.file for answer in answers if answer.size and not answer.words} == {
        "assemble.onnx",
        "language_model.onnx",
        "selectors/divprune-9.onnx",
        "vision_encoder.onnx",
    }


def test_the_memory_is_that_of_the_largest_image(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.assemble is not None
    largest = most_dimensions(manifest.preprocessing.patches)
    assert largest["rows"] == manifest.vision_encoder.tokens == manifest.candidates == 42
    assert largest["patches"] == 4 * 42
    assert ("windows" in largest) == (manifest.family == "qwen2_5_vl")
    peaks = []
    for graph in manifest.seeing:
        found = live_activations(
            read_graph(bundle.folder / graph.file, {"frames": 1, "groups": 1, **largest})
        )
        assert found.unknown == 0
        peaks.append(found.peak)
    after = check_bundle(bundle.folder, TARGETS["agx-orin-64gb"], build=False).forecast
    before = forecast_plan(bundle.plan, TARGETS["agx-orin-64gb"])
    assert after is not None
    assert before is not None
    # The tokens of the image, and its rows with which tokens they are.
    row = manifest.vision_encoder.width * 2
    assert after.need.activations > sum(peaks) + 2 * 42 * row + 8 * 42
    assert before.need.activations > bundle.plan.spec.encoder_activations(2) + 2 * 42 * row
    # A graph has a few constants beside its weights.
    assert 0 <= after.need.vision - before.need.vision < 2048
    assert before.need.cache == after.need.cache
    # Scores of all patches for all patches.
    assert peaks[0] > prod((2, 168, 168, 2))


@pytest.mark.parametrize("per", ["image", "frame"])
@pytest.mark.parametrize("family", QWEN)
def test_the_memory_counts_the_frames_of_a_clip(tmp_path: Path, family: str, per: str) -> None:
    """Their tokens together and their rows; a run of the encoder is that of the largest image still."""
    target = TARGETS["orin-nano-8gb"]
    checkpoint = make_qwen_checkpoint(tmp_path / "checkpoint", family=family, text=WIDE)
    asked = {"dialect": "decomposed", "precision": "fp16", "resolution": SIZES, "capacity": 192}
    bundle = export(plan_of(checkpoint, 9, frames=6, per=per, **asked), tmp_path / "clips")
    images = export(plan_of(checkpoint, 9, **asked), tmp_path / "images")
    manifest, rows = bundle.manifest, bundle.manifest.assemble
    assert rows is not None
    report = check_bundle(bundle.folder, target, build=False)
    assert report.clean and not report.findings
    # A whole clip has 60 tokens at most in Qwen3-VL's processor, so the smallest size is taken three times.
    most = 3 * (40 if family == "qwen3_vl" else 42)
    assert held_dimensions(manifest.preprocessing)["rows"] == most
    assert (rows.tiles, rows.frames, rows.rows) == (3, 3, most if per == "image" else 42)
    largest, row = most_dimensions(manifest.preprocessing.patches), manifest.vision_encoder.width * 2
    dims = {"frames": 1, "groups": manifest.groups}
    peaks = [
        live_activations(read_graph(bundle.folder / graph.file, {**dims, **largest, **more})).peak
        for graph, more in ((manifest.vision_encoder, {}), (rows, {"rows": most}))
    ]
    buffers = (42 + most) * row + manifest.groups * rows.rows * (row + 8)
    after, before = report.forecast, forecast_plan(bundle.plan, target)
    (alone, alone_before) = (
        check_bundle(images.folder, target, build=False).forecast,
        forecast_plan(images.plan, target),
    )
    assert after and before and alone and alone_before
    assert after.need.activations > sum(peaks) + buffers
    # Of images: 42 tokens of a run, and as many rows, with which tokens they are.
    more = buffers - 42 * (2 * row + 8)
    assert before.need.activations - alone_before.need.activations == pytest.approx(more, abs=4 * 3 * 42)
    assert after.need.activations - alone.need.activations > more


def test_without_sizes_it_is_that_of_any(tmp_path: Path) -> None:
    checkpoint = make_qwen_checkpoint(tmp_path / "checkpoint", family="qwen2_5_vl")
    bundle = export(plan_of(checkpoint, 9), tmp_path / "bundle")
    assert check_bundle(bundle.folder, TARGETS["cpu"]).clean
    sizes = {"frames": 1, **most_dimensions(bundle.manifest.preprocessing.patches)}
    assert live_activations(read_graph(bundle.folder / "vision_encoder.onnx", sizes)).unknown == 0
