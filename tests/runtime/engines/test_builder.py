"""From graphs to engines, end to end, as TensorRT-RTX builds them; TensorRT's own ways are in test_builder_tensorrt."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_bundles import refresh
from raising import failed, refused

from divprune_edge.manifest import read_manifest
from divprune_edge.models.budget import PROMPT
from divprune_edge.models.tensorrt import EDITIONS, TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.runtime.engines import edition as editions
from divprune_edge.runtime.engines import facts, memory, store
from divprune_edge.runtime.engines.fingerprint import fingerprint

Build = Any
Here = Any
Recorder = Any


def contents(bundle: Path) -> set[str]:
    """Names of everything under ``engines``."""
    return {path.relative_to(bundle / "engines").as_posix() for path in (bundle / "engines").rglob("*")}


def replace_graph(bundle: Path, file: str, model: onnx.ModelProto) -> None:
    """Put a graph in the place of another."""
    onnx.save(model, bundle / file)
    refresh(bundle, read_manifest(bundle))


def test_a_build_writes_the_store(build: Build, bundle: Path, report: Recorder) -> None:
    built = build(bundle)
    assert built.folder.name == fingerprint(built.info.facts)
    names = ["divprune-58", "vision_encoder", "language_model"]
    expected = {f"{built.folder.name}/{name}.plan" for name in names}
    assert contents(bundle) == expected | {built.folder.name, f"{built.folder.name}/engines.json"}
    assert report.engines() == names
    assert built.reused == ()

    facts = built.info.facts
    assert (facts.edition, facts.sms, facts.cuda) == ("tensorrt-rtx", (89,), None)
    assert facts.tensorrt.startswith("1.")
    assert facts.plugin is None
    assert (facts.limits.max_prompt, facts.limits.kept) == (58 + PROMPT, (1, 58, 58))
    assert json.loads((built.folder / "engines.json").read_text()) == built.info.model_dump(mode="json")
    assert store.read_record(built.folder) == built.info
    for plan in built.info.plans.values():
        assert not plan.plugin
        assert (plan.layers, plan.device_memory) == (None, ()), "only its GPU can load it"
        assert len(plan.profiles) == 1, "each would hold the weights once more"


def test_how_the_engines_are_built(build: Build, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorrt_rtx as trt

    told = []
    really = trt.Builder.build_serialized_network

    def listen(builder: Any, network: Any, config: Any) -> Any:
        told.append(
            (
                config.get_flag(trt.BuilderFlag.TF32),
                config.profiling_verbosity.name,
                config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
                config.builder_optimization_level,
                [config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)],
            )
        )
        return really(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", listen)
    refresh(bundle, read_manifest(bundle), target="rtx")
    build(bundle, selector="none", workspace=64 << 20, optimization_level=2)
    every = ["SM80", "SM86", "SM89", "SM120", "SM121"]
    assert told == [(False, "DETAILED", 64 << 20, 2, every)] * 2, "float32 is float32, one engine is for all"


@pytest.mark.parametrize(
    ("asked", "engines", "kept"),
    [
        ("none", [], (1, 576, 576)),
        ("divprune-144", ["divprune-144"], (1, 144, 144)),
        ("uniform, divprune-144", ["uniform-58", "divprune-144"], (1, 58, 144)),
        ("all", ["divprune-58", "divprune-144", "uniform-58", "vtc-cls-29"], (1, 58, 144)),
        ("all,none", ["divprune-58", "divprune-144", "uniform-58", "vtc-cls-29"], (1, 58, 576)),
        ("divprune-58,divprune-58", ["divprune-58"], (1, 58, 58)),
    ],
)
def test_which_selectors(
    build: Build, bundle: Path, report: Recorder, asked: str, engines: list[str], kept: tuple[int, int, int]
) -> None:
    built = build(bundle, selector=asked)
    assert report.engines() == [*engines, "vision_encoder", "language_model"]
    assert built.info.facts.limits.kept == kept


def test_a_selector_that_is_not_there(build: Build, bundle: Path) -> None:
    with refused("selector-not-in-bundle", "divprun"):
        build(bundle, selector="divprun")


def test_the_same_again_is_refused(build: Build, built: Path, report: Recorder) -> None:
    (folder,) = (built / "engines").iterdir()
    report.events.clear()
    before = (folder / "engines.json").read_bytes()
    with refused("engines-exist", folder, "--force"):
        build(built)
    assert report.events == []
    assert (folder / "engines.json").read_bytes() == before
    again = build(built, force=True)
    assert (again.folder, again.reused) == (folder, ())
    assert list((built / "engines").iterdir()) == [folder]


def test_engines_of_another_build_are_taken_over(build: Build, built: Path, report: Recorder) -> None:
    (first,) = (built / "engines").iterdir()
    second = build(built, selector="uniform")
    assert second.folder != first
    assert set(second.reused) == {"vision_encoder", "language_model"}, "the same budget: the same engine"
    plan = second.info.plans["vision_encoder"].file
    assert (first / plan).samefile(second.folder / plan), "one copy on the disk"
    third = build(built, selector="divprune-144")
    assert third.reused == ("vision_encoder",), "another budget is another profile"
    assert ("done", "vision_encoder", True) in report.events
    assert ("done", "language_model", True) in report.events


def test_a_damaged_engine_is_not_taken_over(build: Build, built: Path) -> None:
    (folder,) = (built / "engines").iterdir()
    (folder / "vision_encoder.plan").write_bytes(b"changed")
    assert build(built, selector="uniform").reused == ("language_model",)


def test_a_changed_graph_is_built_anew(build: Build, built: Path) -> None:
    data = built / "language_model.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refresh(built, read_manifest(built))
    second = build(built)
    assert set(second.reused) == {"vision_encoder", "divprune-58"}
    assert len(list((built / "engines").iterdir())) == 2


@pytest.mark.parametrize("other", [{"optimization_level": 1}, {"target": "rtx5090"}])
def test_other_options_are_other_engines(build: Build, built: Path, other: dict[str, Any]) -> None:
    refresh(built, read_manifest(built), target=None)
    assert build(built, selector="uniform", **({"target": "rtx4090"} | other)).reused == ()


def test_a_longer_prompt_is_another_language_model(build: Build, built: Path) -> None:
    shorter = build(built, max_prompt=128)
    assert set(shorter.reused) == {"vision_encoder", "divprune-58"}
    ids = shorter.info.plans["language_model"].profiles[-1]["input_ids"]
    assert (ids.min, ids.opt, ids.max) == ((1, 1), (1, 122), (1, 128))


def test_progress_is_passed_on(build: Build, bundle: Path, report: Recorder) -> None:
    build(bundle, selector="none")
    begun, first, *_ = report.events
    assert begun == ("begin", "vision_encoder", 1, 2)
    phase, name, parent, steps = first
    assert (phase, parent) == ("phase", None)
    told = [event[2] for event in report.events if event[:2] == ("step", name)]
    assert told[:3] == [0, 1, 2]
    assert max(told) < steps
    assert any(event[0] == "phase" and event[2] == name for event in report.events), "phases nest"
    begun_phases, ended = (report.engines(kind) for kind in ("phase", "finished"))
    assert sorted(begun_phases) == sorted(ended)


def test_ctrl_c_ends_the_build_and_leaves_nothing(build: Build, bundle: Path, report: Recorder) -> None:
    def press() -> None:
        # As the terminal does; inside TensorRT, Python's own handler waits until the build is over.
        if len(report.engines("begin")) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    report.on_step = press
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(bundle)
    finally:
        signal.signal(signal.SIGINT, before)
    assert report.engines() == ["divprune-58"]
    assert contents(bundle) == set()
    cut_short = len(report.events) - report.events.index(("begin", "vision_encoder", 2, 3))
    report.on_step = lambda: None
    report.events.clear()
    assert build(bundle).folder.is_dir()
    whole = report.events.index(("done", "vision_encoder", False)) - report.events.index(
        ("begin", "vision_encoder", 2, 3)
    )
    assert cut_short < whole / 2, "TensorRT itself was stopped"


def test_a_build_that_died_is_cleared_away(build: Build, bundle: Path) -> None:
    with store.partial_folder(bundle) as living:
        dead = shutil.copytree(living.parent, living.parent.with_name(".partial-dead.divprune"))
        build(bundle)
        assert not dead.exists()
        assert living.exists(), "another build that still runs is left alone"
    assert not living.exists()


def test_a_graph_that_tensorrt_cannot_parse(build: Build, bundle: Path, report: Recorder) -> None:
    model = onnx.load(bundle / "selectors/uniform-58.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    replace_graph(bundle, "selectors/uniform-58.onnx", model)
    where = (f"'{bundle / 'selectors/uniform-58.onnx'}'", "'/UniformSelection'", "(NoSuchOperator)")
    reason = 'creator && "Plugin not found'
    with refused("tensorrt-refuses-graph", "TensorRT-RTX", *where, reason, "'python -m export check BUNDLE'"):
        build(bundle, selector="all")
    assert report.events == [], "all selectors are parsed before anything is built"
    assert not (bundle / "engines").exists()


def test_an_input_whose_values_make_shapes(build: Build, bundle: Path) -> None:
    make, kinds = onnx.helper, onnx.TensorProto
    inputs = [
        make.make_tensor_value_info("x", kinds.FLOAT, [6]),
        make.make_tensor_value_info("to", kinds.INT64, [2]),
    ]
    outputs = [make.make_tensor_value_info("y", kinds.FLOAT, ["a", "b"])]
    graph = make.make_graph([make.make_node("Reshape", ["x", "to"], ["y"])], "g", inputs, outputs)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=9)
    replace_graph(bundle, "selectors/uniform-58.onnx", model)
    with refused("graph-shape-input", "'to'"):
        build(bundle, selector="uniform")


def test_polygraphy_prints_nothing(build: Build, bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(bundle)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_polygraphy_is_missing(build: Build, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with refused("polygraphy-missing", "pip install"):
        build(bundle)


def test_a_polygraphy_that_knows_no_tensorrt_rtx(
    build: Build, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.backend.tensorrt_rtx", None)
    with refused("polygraphy-too-old", "0.53", "'python -m pip install --upgrade polygraphy'"):
        build(bundle, selector="none")


def test_a_selector_whose_name_is_no_file(build: Build, bundle: Path) -> None:
    """A manifest may say anything; no engine is written outside its folder."""
    manifest = read_manifest(bundle)
    first, *others = manifest.selectors
    renamed = (first.model_copy(update={"id": "../x"}), *others)
    refresh(bundle, manifest, selectors=renamed, default_selector="../x")
    with refused("selector-name-unfit", "'../x'"):
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


def test_too_little_memory(build: Build, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "host_memory", lambda: (1 << 20, 0))
    with refused("memory-too-small", "1 MiB"):
        build(bundle)
    assert not (bundle / "engines").exists()


def test_too_little_disk(
    build: Build, bundle: Path, report: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(bundle)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: usage._replace(free=10 << 20))
    with refused("disk-too-full", "10 MiB"):
        build(bundle)
    assert report.events == []


def test_a_bundle_that_cannot_be_written_to(build: Build, bundle: Path) -> None:
    (bundle / "engines").write_text("in the way")
    with refused("bundle-unwritable", "engines"):
        build(bundle)


@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_one_process_builds_with_one_edition(build: Build, bundle: Path, edition: Edition) -> None:
    """Polygraphy knows one TensorRT, from its import on."""
    build(bundle, selector="none")
    (other,) = (one for one in EDITIONS.values() if one is not edition)
    with failed("tensorrt-editions-mixed", edition.title, other.title):
        editions.use(other)
    assert editions.in_use() is edition
    editions.use(edition)
