"""What a build with TensorRT has of its own: plugin, timings, description. Over ``fake_tensorrt`` with real engines."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import refresh
from raising import failed, refused

from divprune_edge.manifest import read_manifest
from divprune_edge.models.tensorrt import TENSORRT, Edition
from divprune_edge.plugins.record import LIBRARY, read_record, sha256

TIMINGS = "timing-10.3.0-12.6-87.cache"
Build = Any
Here = Any
Recorder = Any


@pytest.fixture
def edition() -> Edition:
    return TENSORRT


def test_a_build_writes_the_store(build: Build, here: Here, bundle: Path) -> None:
    built = build(bundle)
    names = ["divprune-58", "vision_encoder", "language_model"]
    files = {f"{name}{end}" for name in names for end in (".plan", ".layers.json")}
    assert {path.name for path in built.folder.iterdir()} == files | {"engines.json"}
    assert (bundle / "engines" / TIMINGS).is_file()
    facts = built.info.facts
    assert (facts.edition, facts.sms, facts.cuda, facts.tensorrt) == ("tensorrt", (87,), "12.6", "10.3.0")
    assert facts.plugin is not None
    language = built.info.plans["language_model"]
    assert language.device_memory == (2000, 1000)
    layers = json.loads((built.folder / str(language.layers)).read_text())
    assert layers["Layers"][0]["Name"] == str(bundle / "language_model.onnx")
    assert here.world.deserialized == 3, "TensorRT loads what it built, to describe it"


def test_how_the_engines_are_built(build: Build, here: Here, bundle: Path) -> None:
    build(bundle, workspace=64 << 20, optimization_level=5)
    for plan in here.world.built:
        assert plan.strongly_typed, "the graph decides on types"
        assert not plan.tf32, "float32 is float32"
        assert plan.verbosity == "DETAILED"
        assert (plan.workspace, plan.level) == (64 << 20, 5)
        assert set(plan.extra_memory) == {0.0}, "all profiles use one copy of the weights"
    build(bundle, force=True)
    assert here.world.built[-1].workspace > 1 << 30
    assert here.world.built[-1].level == 3
    assert len(here.world.built[-1].extra_memory) == 2


def test_attention_may_take_several_kernels(build: Build, here: Here, exported: Any, tmp_path: Path) -> None:
    here.update("10.16.2")
    build(Path(shutil.copytree(exported("static"), tmp_path / "static")), selector="none")
    vision, language = (plan.decomposable for plan in here.world.built)
    assert language and all(vision + language)


def test_the_plugin_is_registered_and_stays_outside(build: Build, here: Here, bundle: Path) -> None:
    built = build(bundle)
    assert here.world.registry.loaded == [str(here.library / LIBRARY)]
    assert [name for name, plan in built.info.plans.items() if plan.plugin] == ["divprune-58"]


@pytest.mark.parametrize(
    ("version", "file"),
    [("10.3.0", "selectors/stripped/divprune-58.onnx"), ("10.16.2", "selectors/divprune-58.onnx")],
)
def test_the_stripped_file_where_the_function_would_win(
    build: Build, here: Here, bundle: Path, version: str, file: str
) -> None:
    here.update(version)
    assert build(bundle).info.plans["divprune-58"].graph == file


def test_a_selector_without_plugin_needs_no_library(build: Build, here: Here, bundle: Path) -> None:
    shutil.rmtree(here.library)
    built = build(bundle, selector="uniform")
    assert built.info.facts.plugin is None
    assert here.world.registry.loaded == []
    assert not built.info.plans["uniform-58"].plugin


def test_the_plugin_library_is_missing(build: Build, here: Here, bundle: Path) -> None:
    shutil.rmtree(here.library)
    with refused("plugin-missing", "python -m plugins build"):
        build(bundle)
    assert not (bundle / "engines").exists()


def test_a_plugin_that_the_parser_passes_by(build: Build, here: Here, bundle: Path) -> None:
    """With the function in the file, TensorRT 10.3 takes that without a word: many times slower."""
    shutil.copyfile(bundle / "selectors/divprune-58.onnx", bundle / "selectors/stripped/divprune-58.onnx")
    refresh(bundle, read_manifest(bundle))
    with refused("tensorrt-ignores-plugin", "divprune-58.onnx"):
        build(bundle)
    assert here.world.built == []


def test_another_plugin_is_another_fingerprint(build: Build, here: Here, built: Path) -> None:
    (first,) = (path for path in (built / "engines").iterdir() if path.is_dir())
    path = here.library / LIBRARY
    path.write_bytes(b"another")
    dataclasses.replace(read_record(here.library), sha256=sha256(path)).write(here.library)
    second = build(built)
    assert second.folder != first
    assert set(second.reused) == {"vision_encoder", "language_model"}


def test_the_timing_cache_is_used_again(build: Build, here: Here, bundle: Path) -> None:
    """TensorRT-RTX times nothing: what is shown is that the file is written, and read by the next build."""
    build(bundle, selector="none")
    shared = bundle / "engines" / TIMINGS
    assert shared.stat().st_size > 0
    shared.write_bytes(b"measured before")
    here.world.timings.clear()
    build(bundle, selector="none", force=True)
    assert here.world.timings[0] == b"measured before"
    assert shared.read_bytes() != b"measured before"


def test_what_was_timed_before_ctrl_c_is_kept(
    build: Build, here: Here, bundle: Path, report: Recorder
) -> None:
    def press() -> None:
        if len(here.world.built) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    report.on_step = press
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(bundle)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in (bundle / "engines").iterdir()] == [TIMINGS]


def test_an_engine_that_tensorrt_does_not_find(build: Build, here: Here, bundle: Path) -> None:
    here.world.capability = "SM75"
    with failed("engine-build-failed", "TensorRT 10.3.0", "58.onnx", "FP32 GEMM"):
        build(bundle)
    assert list((bundle / "engines").iterdir()) == []


def test_tensorrt_does_not_start(build: Build, here: Here, bundle: Path) -> None:
    here.world.starts = False
    with failed("tensorrt-not-starting", "TensorRT 10.3.0", 35):
        build(bundle)


def test_an_engine_that_does_not_load(build: Build, here: Here, bundle: Path) -> None:
    here.world.built = Forgetful()
    with failed("engine-not-loaded", "TensorRT 10.3.0"):
        build(bundle)


class Forgetful(list[Any]):
    """Engines that nobody knows any more."""

    def append(self, one: Any) -> None:
        pass


def test_too_little_memory_on_the_gpu(build: Build, here: Here, bundle: Path) -> None:
    here.change(free_memory=1 << 20)
    with refused("memory-too-small", "GPU", "1 MiB"):
        build(bundle)
    assert not (bundle / "engines").exists()
