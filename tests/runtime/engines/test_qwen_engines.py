"""Engines for images of any size: TensorRT-RTX builds them; a FAKE device runs their graphs instead."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import same
from engine_bundles import refresh
from exporting import export, open_session, plan_of, run_with
from fake_device import FakeDevice
from plugins_emulation import EMULATED, compile_emulated, write_library
from qwen_checkpoints import QWEN, images_of, make_qwen_checkpoint

from divprune_edge import Pipeline
from divprune_edge.manifest import read_manifest
from divprune_edge.models.profiles import make_limits, vision_profiles
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.plugins import abi
from divprune_edge.processing.patches import dimensions
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import cuda
from divprune_edge.runtime.engines.edition import use
from divprune_edge.runtime.engines.graphs import BuildJob, chosen_selectors, graphs_of
from divprune_edge.runtime.engines.progress import BuildProgress

Build = Any
Here = Any
NAMES = {"divprune-9", "assemble", "vision_encoder", "language_model"}
SIZES = "56x56,96x32,32x96,32x32"
SHAPES = ((70, 100), (33, 30), (20, 90))


@pytest.fixture(scope="module", params=QWEN)
def exported_qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for images of three grids and for clips, in dialect ``decomposed``."""
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make_qwen_checkpoint(folder / "checkpoint", family=request.param)
    plan = plan_of(checkpoint, 9, dialect="decomposed", capacity=192, resolution=SIZES, frames=4)
    return export(plan, folder / "bundle").folder


@pytest.fixture
def bundle(exported_qwen: Path, edition: Edition, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(exported_qwen, tmp_path / "bundle"))
    refresh(folder, read_manifest(folder), target="rtx4090" if edition is TENSORRT_RTX else None)
    return folder


@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_what_is_built_is_what_is_run(
    build: Build, bundle: Path, edition: Edition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One engine for all sizes: of a profile for each grid, or of one that spans them."""
    built = build(bundle, images=2)
    assert set(built.info.plans) == NAMES
    device = FakeDevice(bundle=bundle)
    monkeypatch.setattr(cuda, "CudaDevice", lambda edition: device)
    ours, cpu = Pipeline(bundle, backend=edition.name), Pipeline(bundle, threads=1)
    patches = cpu.bundle.manifest.preprocessing.patches
    assert patches is not None
    profiles = built.info.plans["vision_encoder"].profiles
    assert len(profiles) == (1 if edition is TENSORRT_RTX else len(dimensions(patches)))
    images = images_of(SHAPES)
    for asked in (*images, images[:2], None):
        options = {"max_tokens": 6, "ignore_eos": True}
        same(*(one.ask(asked, "what is in the picture ?", **options) for one in (ours, cpu)))
    for video in ([np.asarray(images[1])] * 3, np.stack([np.asarray(images[2])] * 4)):
        same(*(one.ask(None, "how many red star ?", video=video, max_tokens=4) for one in (ours, cpu)))


def test_the_kernel_between_the_engines(
    build: Build,
    bundle: Path,
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its own source, emulated, in the place of the selector's engine, which is not loaded."""
    build(bundle)
    write_library(here.library)
    emulated = abi.load(compile_emulated(tmp_path_factory.mktemp("emulated"), EMULATED[0]))
    device = FakeDevice(bundle=bundle, library=emulated)
    monkeypatch.setattr(cuda, "CudaDevice", lambda edition: device)
    ours, cpu = Pipeline(bundle, backend="tensorrt-rtx"), Pipeline(bundle, threads=1)
    for image in images_of(SHAPES):
        same(*(one.ask(image, "how many red star ?", max_tokens=4) for one in (ours, cpu)))
    assert device.counts["max_min"] == len(SHAPES)
    assert device.counts["load divprune-9"] == 0


@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_every_shape_of_every_profile_runs(bundle: Path, edition: Edition) -> None:
    opened = Bundle.open(bundle)
    selectors = chosen_selectors(opened, "all,none")
    limits = make_limits(opened.manifest, selectors, None)
    graphs = graphs_of(opened, selectors, limits, "10.16.2", edition)
    assert {graph.name for graph in graphs} == NAMES
    for graph in graphs:
        session = open_session(opened.file(graph.file))
        for profile in graph.profiles:
            assert set(profile) == {one.name for one in session.get_inputs()}
            for end in ("min", "opt", "max"):
                run_with(session, {name: getattr(shapes, end) for name, shapes in profile.items()})


def test_profiles_share_the_weights(here: Here, tmp_path: Path) -> None:
    """A profile brings kernels, and no second copy of 60 MB: what an engine for each grid would."""
    vision = {"depth": 6, "hidden_size": 512, "intermediate_size": 2048, "num_heads": 8, "patch_size": 8}
    checkpoint = make_qwen_checkpoint(tmp_path / "checkpoint", family="qwen3_vl", vision=vision)
    plan = plan_of(
        checkpoint, 9, dialect="static", precision="fp16", resolution="64x192,96x128,112x112,112x128"
    )
    opened = Bundle.open(export(plan, tmp_path / "bundle").folder)
    graph = opened.manifest.vision_encoder
    weights = sum(opened.manifest.files[name].size for name in (graph.file, *graph.data))
    assert weights > 50e6
    use(TENSORRT_RTX)
    from divprune_edge.runtime.engines import compile as compiler

    sizes = []
    every = vision_profiles(opened.manifest)
    assert len(every) == 3
    for profiles in (every, every[:1], vision_profiles(opened.manifest, apart=False)):
        data = tuple(map(opened.file, graph.data))
        job = BuildJob("vision", opened.file(graph.file), profiles, False, None, None, data, (89,))
        sizes.append(memoryview(compiler.make_engine(job, None, BuildProgress())).nbytes)
    several, one, spanning = sizes
    print(f"weights {weights}, a profile each {several}, one profile {one}, one that spans them {spanning}")
    assert weights < one <= spanning < several < 1.2 * weights
