"""Engines of a bundle whose images have tiles: TensorRT-RTX builds them; a FAKE device runs their graphs instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NEXT, ONEVISION, make_checkpoint
from engine_bundles import refresh
from exporting import export, plan_of
from fake_device import FakeDevice
from images_made import noise_pixels
from raising import refused

from divprune_edge.manifest import read_manifest
from divprune_edge.models.tensorrt import TENSORRT_RTX
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.fingerprint import fingerprint
from divprune_edge.runtime.engines.opening import open_engines
from divprune_edge.runtime.engines.store import EnginesInfo, read_record
from divprune_edge.runtime.vision import Vision

Build = Any
NAMES = {"divprune-9", "assemble", "vision_encoder", "language_model"}


@pytest.fixture(scope="module", params=["next", "onevision"])
def tiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    options = {"next": NEXT, "onevision": ONEVISION}[request.param]
    checkpoint = make_checkpoint(folder / "checkpoint", **options)
    plan = plan_of(checkpoint, 9, per="tile", dialect="decomposed", capacity=256, signals="all")
    return export(plan, folder / "bundle").folder


@pytest.fixture
def bundle(tiled: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiled, tmp_path / "bundle"))
    refresh(folder, read_manifest(folder), target="rtx4090")
    return folder


def store_of(bundle: Path) -> Path:
    return next(path for path in (bundle / "engines").iterdir() if path.is_dir())


def test_what_is_built_is_what_is_run(build: Build, bundle: Path) -> None:
    built = build(bundle)
    assert set(built.info.plans) == set(built.info.facts.onnx) == NAMES
    opened = Bundle.open(bundle)
    device = FakeDevice(bundle=bundle)

    def engines(selector: Any, *, before: Any = None) -> Any:
        return open_engines(opened, selector, before=before, edition=TENSORRT_RTX)

    ours, cpu = TensorRtBackend(opened, device, engines), open_backend(opened, "cpu", 1)
    selector = opened.selector()
    found = []
    for backend in (ours, cpu):
        backend.load(selector)
        vision = Vision(opened, backend)
        images = vision.read([noise_pixels(70, 70)])
        seen = vision.see(images, selector)
        found.append((seen.rows, seen.kept_indices, backend.to_host(seen.tokens)))
    (*rows, tokens), (*wanted, values) = found
    assert all(map(np.array_equal, rows, wanted))
    assert np.allclose(tokens, values, atol=1e-5)
    assert (device.counts["load assemble"], device.counts["assemble"]) == (1, 1)


def test_engines_without_that_of_the_rows_are_refused(build: Build, bundle: Path) -> None:
    build(bundle)
    store = store_of(bundle)
    info = read_record(store).model_dump(mode="json")
    del info["plans"]["assemble"], info["facts"]["onnx"]["assemble"]
    facts = EnginesInfo.model_validate(info).facts
    (store / "engines.json").write_text(json.dumps(info))
    store.rename(store.with_name(fingerprint(facts)))
    opened = Bundle.open(bundle)
    with refused("engines-unfit", "built with divprune-9, but not with 'assemble'", "runtime build"):
        open_engines(opened, opened.selector(), edition=TENSORRT_RTX)


def test_rows_from_another_graph(build: Build, bundle: Path) -> None:
    """The fingerprint of engines has the graph of the rows in it."""
    first = build(bundle).folder
    graph = bundle / "assemble.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x3a\x00")  # an empty field that ONNX knows: the same graph
    refresh(bundle, read_manifest(bundle))
    opened = Bundle.open(bundle)
    with refused("engines-unfit", "from another graph of 'assemble'"):
        open_engines(opened, opened.selector(), edition=TENSORRT_RTX)
    again = build(bundle)
    assert again.folder != first
    assert set(again.reused) == NAMES - {"assemble"}


def test_a_selector_on_top(build: Build, bundle: Path) -> None:
    """The engines that are loaded are not read again, whatever the selector."""
    build(bundle, selector="divprune,none")
    opened = Bundle.open(bundle)
    before = open_engines(opened, None, edition=TENSORRT_RTX)
    assert set(before.plans) == NAMES - {"divprune-9"}
    assert set(open_engines(opened, opened.selector(), before=before, edition=TENSORRT_RTX).plans) == {
        "divprune-9"
    }


def test_the_profile_takes_every_image(bundle: Path, build: Build) -> None:
    built = build(bundle, selector="divprune,none")
    manifest = Bundle.open(bundle).manifest
    assert manifest.assemble is not None
    (profile,) = built.info.plans["assemble"].profiles
    tiles = manifest.assemble.tiles
    for name in ("tile_tokens", "rows"):
        assert (profile[name].min[0], profile[name].max[0]) == (1, tiles)
    assert built.info.plans["vision_encoder"].profiles[0]["pixels"].max[0] == min(8, tiles)
    assert built.info.facts.limits.kept[-1] == manifest.candidates * tiles
