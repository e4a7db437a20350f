"""Bundles whose images have tiles against targets: the graph of the rows is looked at, and the memory counts tiles."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import NEXT, ONEVISION, make_checkpoint
from exporting import Bundle, Silent, export, plan_of

from divprune_edge.export.check.asked import ask_tensorrt
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.export.check.graph import read_graph
from divprune_edge.export.check.liveness import live_activations
from divprune_edge.export.package import write_package
from divprune_edge.export.targets import forecast_plan
from divprune_edge.models.memory import tile_buffers
from divprune_edge.models.targets import TARGETS, Target

ORIN, ORIN_7 = TARGETS["agx-orin-64gb"], TARGETS["orin-nano-8gb-jp7"]
KEEP = 9


@pytest.fixture(scope="module", params=[(f, p) for f in ("next", "onevision") for p in ("image", "tile")])
def tiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    family, per = request.param
    folder = tmp_path_factory.mktemp(family)
    checkpoint = make_checkpoint(folder / "checkpoint", **{"next": NEXT, "onevision": ONEVISION}[family])
    plan = plan_of(checkpoint, KEEP, per=per, dialect="decomposed", precision="fp16")
    return export(plan, folder / "bundle")


@pytest.mark.parametrize("target", [ORIN, ORIN_7], ids=lambda target: target.name)
def test_every_graph_is_looked_at(tiled: Bundle, target: Target) -> None:
    report = check_bundle(tiled.folder, target)
    assert report.clean, report.findings
    assert "assemble.onnx" in [graph.file for graph in report.graphs]


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="unproven: no TensorRT-RTX (pip install '.[rtx]')",
)
def test_every_graph_is_built(tiled: Bundle) -> None:
    answers = ask_tensorrt(tiled.folder, ORIN_7).answers
    assert {answer.file for answer in answers if answer.size and not answer.words} == {
        "assemble.onnx",
        "language_model.onnx",
        "selectors/divprune-9.onnx",
        "vision_encoder.onnx",
    }


def test_the_memory_counts_tiles(tiled: Bundle) -> None:
    manifest, rows = tiled.manifest, tiled.manifest.assemble
    assert rows is not None
    info = manifest.language_model
    kept = KEEP * (rows.tiles if rows.per == "tile" else 1)
    assert manifest.visual_tokens(manifest.selectors[0]) == tiled.plan.visual_tokens == kept
    assert info.capacity == -(-(kept + 448) // 64) * 64
    after, before = check_bundle(tiled.folder, ORIN, build=False).forecast, forecast_plan(tiled.plan, ORIN)
    assert after is not None
    assert before is not None
    tile, row = (
        manifest.vision_encoder.tokens * manifest.vision_encoder.width * 2,
        manifest.vision_encoder.width * 2,
    )
    group = rows.rows * (row + rows.sources * 8 + (rows.sources * 4 if rows.sources > 1 else 0))
    at_once = manifest.tiles_at_once
    held = tile_buffers(
        at_once * tile, rows.tiles * tile if rows.tiles > at_once else 0, group, manifest.groups
    )
    peaks = 0
    for graph, tiles in ((manifest.vision_encoder, manifest.tiles_at_once), (rows, rows.tiles)):
        dims = {"tiles": tiles, "groups": manifest.groups}
        found = live_activations(read_graph(tiled.folder / graph.file, dims))
        assert found.unknown == 0
        peaks += found.peak
    assert after.need.activations > held + peaks
    assert before.need.cache == after.need.cache
    assert before.need.activations > held + tiled.plan.spec.encoder_activations(2) * at_once


def test_buffers_by_hand() -> None:
    """Five tiles are one run; of ten there are two, whose tokens are copied together, each before the next."""
    assert tile_buffers(800, 0, 7, groups=1) == 807
    assert tile_buffers(800, 1000, 7, groups=10) == 1870


def test_a_package_has_the_graph_of_the_rows(tiled: Bundle, tmp_path: Path) -> None:
    write_package(tiled.folder, ORIN, tmp_path / "board.tar", force=False, report=Silent())
    with tarfile.open(tmp_path / "board.tar") as tar:
        members = {member.name.split("/", 1)[1] for member in tar.getmembers()}
    assert "bundle/assemble.onnx" in members
    assert np.all([f"bundle/{name}" in members for name in tiled.manifest.files])
