"""From graphs to engines, end to end over ``fake_tensorrt`` with the real Polygraphy."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_bundles import make_bundle, refresh
from fake_tensorrt import World, install

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.manifest import read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.plugins.record import LIBRARY, read_record, sha256
from divprune_edge.runtime.engines import memory, store
from divprune_edge.runtime.engines.fingerprint import fingerprint
from divprune_edge.runtime.engines.profiles import PREFILL

TIMINGS = "timing-10.3.0-12.6-87.cache"
Build = Any
Here = Any
Recorder = Any


def contents(bundle: Path) -> set[str]:
    """Names of everything under ``engines``."""
    return {path.relative_to(bundle / "engines").as_posix() for path in (bundle / "engines").rglob("*")}


def only_folder(bundle: Path) -> Path:
    (found,) = (path for path in (bundle / "engines").iterdir() if path.is_dir())
    return found


def test_a_build_writes_the_store(build: Build, here: Here, bundle: Path, report: Recorder) -> None:
    built = build(bundle)
    assert built.folder == only_folder(bundle)
    assert built.folder.name == fingerprint(built.info.facts)
    names = ["divprune-58", "vision_encoder", "language_model"]
    files = {f"{name}{end}" for name in names for end in (".plan", ".layers.json")}
    expected = {TIMINGS, built.folder.name, f"{built.folder.name}/engines.json"}
    assert contents(bundle) == expected | {f"{built.folder.name}/{file}" for file in files}
    assert report.engines() == names
    assert built.reused == ()

    facts = built.info.facts
    assert (facts.edition, facts.sms, facts.cuda, facts.tensorrt) == ("tensorrt", (87,), "12.6", "10.3.0")
    assert facts.plugin is not None
    assert (facts.limits.max_prompt, facts.limits.kept) == (58 + PROMPT, (58, 58, 58))
    assert json.loads((built.folder / "engines.json").read_text()) == built.info.model_dump(mode="json")
    assert store.read_record(built.folder) == built.info
    language = built.info.plans["language_model"]
    assert len(language.profiles) == 2
    assert language.device_memory == (2000, 1000)
    layers = json.loads((built.folder / language.layers).read_text())
    assert layers["Layers"][0]["Name"] == str(bundle / "language_model.onnx")


def test_how_the_engines_are_built(build: Build, here: Here, bundle: Path) -> None:
    build(bundle, workspace=64 << 20, optimization_level=5)
    for plan in here.world.built:
        assert plan["strongly_typed"], "the graph decides on types"
        assert not plan["tf32"], "float32 is float32"
        assert plan["verbosity"] == "DETAILED"
        assert (plan["workspace"], plan["level"]) == (64 << 20, 5)
    build(make_bundle(bundle.parent / "plain"))
    assert (here.world.built[-1]["workspace"], here.world.built[-1]["level"]) == (None, 3)


def test_the_plugin_is_registered_and_stays_outside(build: Build, here: Here, bundle: Path) -> None:
    build(bundle)
    assert here.world.registry.loaded == [str(here.library / "libdivprune_plugins.so")]


def test_the_stripped_file_where_the_function_would_win(
    build: Build, here: Here, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build(bundle).info.plans["divprune-58"].graph == "selectors/stripped/divprune-58.onnx"
    world = World("10.16.2")
    install(world, monkeypatch)
    here.change(tensorrt="10.16.2")
    assert build(bundle).info.plans["divprune-58"].graph == "selectors/divprune-58.onnx"


def test_a_selector_without_plugin_needs_no_library(build: Build, here: Here, bundle: Path) -> None:
    shutil.rmtree(here.library)
    built = build(bundle, selector="uniform")
    assert built.info.facts.plugin is None
    assert here.world.registry.loaded == []
    assert not built.info.plans["uniform-58"].plugin


def test_the_plugin_library_is_missing(build: Build, here: Here, bundle: Path) -> None:
    shutil.rmtree(here.library)
    with pytest.raises(UserError, match=r"There is no plugin library .* 'python -m plugins build'"):
        build(bundle)
    assert not (bundle / "engines").exists()


def test_a_plugin_that_the_parser_passes_by(build: Build, here: Here, bundle: Path, report: Recorder) -> None:
    """With the function in the file, TensorRT 10.3 takes that without a word: many times slower."""
    shutil.copyfile(bundle / "selectors/divprune-58.onnx", bundle / "selectors/stripped/divprune-58.onnx")
    refresh(bundle, read_manifest(bundle))
    with pytest.raises(UserError, match=r"did not take the plugin for '.*divprune-58\.onnx'"):
        build(bundle)
    assert here.world.built == []


@pytest.mark.parametrize(
    ("asked", "engines", "kept"),
    [
        ("none", [], (576, 576, 576)),
        ("divprune-144", ["divprune-144"], (144, 144, 144)),
        ("uniform, divprune-144", ["uniform-58", "divprune-144"], (58, 58, 144)),
        ("all", ["divprune-58", "divprune-144", "uniform-58", "vtc_cls-29"], (29, 58, 144)),
        ("all,none", ["divprune-58", "divprune-144", "uniform-58", "vtc_cls-29"], (29, 58, 576)),
        ("divprune-58,divprune-58", ["divprune-58"], (58, 58, 58)),
    ],
)
def test_which_selectors(
    build: Build, bundle: Path, report: Recorder, asked: str, engines: list[str], kept: tuple[int, int, int]
) -> None:
    built = build(bundle, selector=asked)
    assert report.engines() == [*engines, "vision_encoder", "language_model"]
    assert built.info.facts.limits.kept == kept


def test_a_selector_that_is_not_there(build: Build, bundle: Path) -> None:
    with pytest.raises(UserError, match=r"no selector 'divprun'.*did you mean"):
        build(bundle, selector="divprun")


def test_the_same_again_is_refused(build: Build, here: Here, bundle: Path) -> None:
    folder = build(bundle).folder
    before = (folder / "engines.json").read_bytes()
    with pytest.raises(UserError, match=rf"'{folder}' holds these engines already: .*--force"):
        build(bundle)
    assert len(here.world.built) == 3
    assert (folder / "engines.json").read_bytes() == before
    assert build(bundle, force=True).folder == folder
    assert len(here.world.built) == 6
    assert only_folder(bundle) == folder


def test_the_timing_cache_is_used_again(build: Build, here: Here, bundle: Path) -> None:
    build(bundle)
    assert len(here.world.timed) == 3
    build(bundle, force=True)
    assert len(here.world.timed) == 3, "the second time everything comes from the cache"
    timed = json.loads((bundle / "engines" / TIMINGS).read_bytes())
    assert [Path(name).name for name in timed] == [
        "language_model.onnx",
        "divprune-58.onnx",
        "vision_encoder.onnx",
    ]


def test_engines_of_another_build_are_taken_over(
    build: Build, here: Here, bundle: Path, report: Recorder
) -> None:
    first = build(bundle)
    second = build(bundle, selector="uniform")
    assert second.folder != first.folder
    assert set(second.reused) == {"vision_encoder", "language_model"}, "the same budget: the same engine"
    assert len(here.world.built) == 4
    plan = second.info.plans["vision_encoder"].file
    assert (first.folder / plan).samefile(second.folder / plan), "one copy on the disk"
    third = build(bundle, selector="divprune-144")
    assert third.reused == ("vision_encoder",), "another budget is another profile"
    assert ("done", "vision_encoder", True) in report.events


def test_a_damaged_engine_is_not_taken_over(build: Build, bundle: Path) -> None:
    first = build(bundle)
    (first.folder / "vision_encoder.plan").write_bytes(b"changed")
    assert build(bundle, selector="uniform").reused == ("language_model",)


def test_a_changed_graph_is_built_anew(build: Build, bundle: Path) -> None:
    first = build(bundle)
    (bundle / "language_model.data").write_bytes(bytes(4999) + b"\x01")
    refresh(bundle, read_manifest(bundle))
    second = build(bundle)
    assert second.folder != first.folder
    assert set(second.reused) == {"vision_encoder", "divprune-58"}


def test_other_options_are_other_engines(build: Build, bundle: Path) -> None:
    build(bundle)
    assert build(bundle, selector="uniform", optimization_level=1).reused == ()


def test_a_longer_prompt_is_another_language_model(build: Build, here: Here, bundle: Path) -> None:
    build(bundle)
    shorter = build(bundle, max_prompt=128)
    assert set(shorter.reused) == {"vision_encoder", "divprune-58"}
    assert here.world.built[-1]["profiles"][PREFILL]["input_ids"] == {
        "min": (1, 1),
        "opt": (1, 122),
        "max": (1, 128),
    }


def test_progress_is_passed_on(build: Build, bundle: Path, report: Recorder) -> None:
    build(bundle)
    assert report.events[:7] == [
        ("begin", "divprune-58", 1, 3),
        ("phase", "Building", None, 3),
        ("phase", "Timing", "Building", 1),
        ("step", "Timing", 0),
        ("finished", "Timing"),
        ("step", "Building", 0),
        ("step", "Building", 1),
    ]


def test_ctrl_c_ends_the_build_and_leaves_nothing_but_timings(build: Build, here: Here, bundle: Path) -> None:
    def press(step: int) -> None:
        if len(here.world.built) == 1 and step == 1:
            # As the terminal does; inside TensorRT, Python's own handler waits until the build is over.
            before = signal.signal(signal.SIGINT, lambda *_: None)
            os.kill(os.getpid(), signal.SIGINT)
            signal.signal(signal.SIGINT, before)

    here.world.on_step = press
    with pytest.raises(KeyboardInterrupt):
        build(bundle)
    assert len(here.world.built) == 1
    assert contents(bundle) == {TIMINGS}
    here.world.on_step = lambda step: None
    assert build(bundle).folder.is_dir()
    assert len(here.world.timed) == 3, "what was timed before the interruption was not timed again"


def test_a_build_that_died_is_cleared_away(build: Build, bundle: Path) -> None:
    dead = bundle / "engines" / ".partial-999999999"
    (dead / "plans").mkdir(parents=True)
    living = bundle / "engines" / f".partial-{os.getppid()}"
    living.mkdir()
    build(bundle)
    assert not dead.exists()
    assert living.exists(), "another build that still runs is left alone"


def test_a_graph_that_tensorrt_cannot_parse(build: Build, here: Here, bundle: Path) -> None:
    here.world.parse_errors["uniform-58.onnx"] = ("/select/CumSum", "CumSum", "In node 3:\n  no integers.")
    with pytest.raises(UserError) as error:
        build(bundle, selector="all")
    sentence = (
        f"TensorRT 10.3.0 cannot read '{bundle / 'selectors/uniform-58.onnx'}': node '/select/CumSum' (CumSum): In "
        "node 3: no integers; 'python -m export check BUNDLE' says more; a bundle of an older release is exported "
        "again."
    )
    assert str(error.value) == sentence
    assert here.world.built == [], "all selectors are parsed before anything is built"
    assert not (bundle / "engines").exists()


def test_an_engine_that_tensorrt_does_not_find(build: Build, here: Here, bundle: Path) -> None:
    here.world.build_error = (
        "[optimizer.cpp::computeCosts::3728] Error Code 10: no implementation for node {/a/b}."
    )
    with pytest.raises(
        DivpruneError,
        match=r"cannot build an engine from '.*58\.onnx': \[optim.*no impl.*b}; what follows from it\.$",
    ):
        build(bundle)
    assert contents(bundle) == set()


def test_tensorrt_does_not_start(build: Build, here: Here, bundle: Path) -> None:
    here.world.starts = False
    with pytest.raises(DivpruneError, match=r"TensorRT 10\.3\.0 does not start: CUDA init.*: 35\.$"):
        build(bundle)


def test_an_input_whose_values_make_shapes(build: Build, bundle: Path) -> None:
    path = bundle / "vision_encoder.onnx"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shapes": ["pixels"]}))
    refresh(bundle, read_manifest(bundle))
    with pytest.raises(UserError, match="takes the values of input 'pixels'"):
        build(bundle)


def test_polygraphy_prints_nothing(build: Build, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(bundle)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_polygraphy_is_missing(build: Build, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(UserError, match=r"Polygraphy, which builds engines, cannot be loaded.*pip install"):
        build(bundle)


def test_weights_that_were_read_leave_the_file_cache(
    build: Build, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Jetson it lies in the GPU's memory, and CUDA does not count it as free."""
    dropped = []

    def advise(file: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED), "the whole file"
        dropped.append(Path(f"/proc/self/fd/{file}").readlink().relative_to(bundle.resolve()).as_posix())

    monkeypatch.setattr(os, "posix_fadvise", advise)
    build(bundle)
    manifest = read_manifest(bundle)
    assert dropped == [*manifest.vision_encoder.data, *manifest.language_model.data]
    assert dropped


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"free_memory": 4000},
            r"Building the largest engine takes at least 1 MiB on the GPU, but there are 1 MiB",
        ),
        (
            {"host_memory": 15000},
            r"takes at least 1 MiB with swap, but there are 1 MiB: close other programs",
        ),
    ],
)
def test_too_little_memory(
    build: Build, here: Here, bundle: Path, facts: dict[str, Any], sentence: str
) -> None:
    here.change(**facts)
    with pytest.raises(UserError, match=sentence):
        build(bundle)
    assert not (bundle / "engines").exists()


def test_too_little_disk(build: Build, here: Here, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bundle)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: usage._replace(free=10 << 20))
    with pytest.raises(
        UserError, match=r"The engines take about 65 MiB on the disk of '.*', which has 10 MiB free"
    ):
        build(bundle)
    assert here.world.built == []


def test_a_bundle_that_cannot_be_written_to(build: Build, bundle: Path) -> None:
    (bundle / "engines").write_text("in the way")
    with pytest.raises(UserError, match=r"'.*engines' cannot be written"):
        build(bundle)


def test_another_plugin_is_another_fingerprint(build: Build, here: Here, bundle: Path) -> None:
    first = build(bundle)
    path = here.library / LIBRARY
    path.write_bytes(b"another")
    dataclasses.replace(read_record(here.library), sha256=sha256(path)).write(here.library)
    second = build(bundle)
    assert second.folder != first.folder
    assert set(second.reused) == {"vision_encoder", "language_model"}
