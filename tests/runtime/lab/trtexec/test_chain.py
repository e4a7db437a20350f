"""A language model that is a chain: one line that builds and two that measure for each graph, with inputs that fit."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, open_session, plan_of
from trtexec_lines import lines_of, shapes_of
from trtexec_made_up import made_up_layers, made_up_profile, made_up_times

from divprune_edge.manifest import LanguageInfo
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.profiles import DECODE, PREFILL, make_limits
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.graphs import graphs_of
from divprune_edge.runtime.lab.profiling.measure import DECODE as DECODE_STEP
from divprune_edge.runtime.lab.profiling.roofline import costs

KEEP = 144
CACHE = "past_key_values."
CASES = [
    # Judges by the layer behind the cut, at three cuts; sums over layers; reads all rows; looks at nothing.
    ("pyramiddrop", "decomposed", "10.3"),
    ("transprune", "static", "10.16.2"),
    ("aim", "static", "11.1"),
    ("todre-2", "decomposed", "11.4.1"),
]
Get = Callable[[str, str], Bundle]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """The demo, of which DivPrune lets 144 tokens enter, with a schedule."""
    made: dict[tuple[str, str], Bundle] = {}

    def get(schedule: str, dialect: str) -> Bundle:
        if (schedule, dialect) not in made:
            plan = plan_of(CHECKPOINT, KEEP, schedule=schedule, dialect=dialect, capacity=512)
            folder = tmp_path_factory.mktemp("chain") / "bundle"
            made[schedule, dialect] = Bundle.open(export(plan, folder).folder)
        return made[schedule, dialect]

    return get


def loaded(info: LanguageInfo, arguments: list[str]) -> dict[str, Any]:
    """What a line loads for every input of the graph, in the shapes that it states."""
    (shapes,) = shapes_of(arguments, "shapes")
    (text,) = [one.split("=", 1)[1] for one in arguments if one.startswith("--loadInputs=")]
    files = dict(part.rsplit(":", 1) for part in text.split(","))
    names = {one.name: f"{CACHE}*" if one.name.startswith(CACHE) else one.name for one in info.inputs}
    assert set(files) == set(names.values())
    return {
        one.name: np.fromfile(files[names[one.name]], one.dtype).reshape(
            shapes.get(names[one.name], one.shape)
        )
        for one in info.inputs
    }


@pytest.mark.parametrize("real", [True, False], ids=["real", "made up"])
@pytest.mark.parametrize(("schedule", "dialect", "version"), CASES)
def test_every_graph_gets_what_it_would_be_fed(
    chain: Get,
    command: Any,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
    dialect: str,
    version: str,
    *,
    real: bool,
) -> None:
    """The graphs run with it, and hand on as many rows as the next one is said to get but for those that leave."""
    bundle = chain(schedule, dialect)
    info = bundle.manifest.language_model
    assert info.schedule is not None
    if not real:
        monkeypatch.setitem(sys.modules, "divprune_edge.runtime.backends.onnxruntime", None)
    lines = lines_of(command, bundle, version, library, tmp_path / "out", "--stage", "language")
    count = len(info.segments)
    titles = ("build language_model.{0}", "measure prefill.{0}", "measure decode.{0}")
    assert list(lines) == [title.format(i) for i in range(count) for title in titles]
    text = 0
    for i, keep in enumerate(info.schedule.keeps):
        part = info.segment(i)
        session = open_session(bundle.file(part.file))
        prefill, decode = (loaded(part, lines[f"measure {stage}.{i}"]) for stage in ("prefill", "decode"))
        entry = "hidden" if i else "input_ids"
        rows = prefill[entry].shape[1]
        text = text or rows - KEEP
        assert rows == text + keep
        assert decode[entry].shape[1] == 1
        for given, seq, held in ((prefill, rows, 0), (decode, 1, rows)):
            outputs = dict(
                zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True)
            )
            assert all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind == "f")
            if i < count - 1:
                assert outputs["hidden_out"].shape[1] == seq
            assert given["position_ids"].shape == (1, seq)
            cache = next(value for name, value in given.items() if name.startswith(CACHE))
            assert cache.shape[2] == part.capacity
            assert cache[:, :, :held].all()
            assert not cache[:, :, held:].any()
        # Text lies around the image, so that the last position is the prompt's where positions stay.
        last = text + KEEP - 1 if info.schedule.numbering == "original" else rows - 1
        assert (prefill["position_ids"][0, -1], decode["position_ids"][0, 0]) == (last, last + 1)


@pytest.mark.parametrize(("schedule", "dialect", "version"), CASES)
def test_engines_are_the_builders(
    chain: Get, command: Any, library: Path, tmp_path: Path, schedule: str, dialect: str, version: str
) -> None:
    """What is measured lies within the shapes that each is built for; prefill is tuned for what is left there."""
    bundle = chain(schedule, dialect)
    info, chosen = bundle.manifest.language_model, [bundle.selector()]
    assert info.schedule is not None
    lines = lines_of(command, bundle, version, library, tmp_path / "out", "--stage", "language")
    graphs = {
        one.name: one
        for one in graphs_of(bundle, chosen, make_limits(bundle.manifest, chosen, None), version)
    }
    for i, keep in enumerate(info.schedule.keeps):
        build = lines[f"build language_model.{i}"]
        assert any(one.startswith("--decomposableAttentions") for one in build) == (version != "10.3")
        profiles = graphs[f"language_model.{i}"].profiles
        assert profiles[PREFILL]["hidden" if i else "input_ids"].opt[1] == keep + 64
        for bound in ("min", "opt", "max"):
            for profile, given in zip(profiles, shapes_of(build, f"{bound}Shapes"), strict=True):
                for name, shapes in profile.items():
                    pattern = f"{CACHE}*" if name.startswith(CACHE) else name
                    assert given.get(pattern, shapes.min) == getattr(shapes, bound), name
        for stage, at in (("prefill", PREFILL), ("decode", DECODE)):
            for name, values in loaded(info.segment(i), lines[f"measure {stage}.{i}"]).items():
                shapes = profiles[at][name]
                sizes = zip(shapes.min, values.shape, shapes.max, strict=True)
                assert all(least <= size <= most for least, size, most in sizes), (stage, i, name)


def test_the_report_has_every_graph(chain: Get, command: Any, library: Path, tmp_path: Path) -> None:
    """Beside its own roofline: those of all graphs are made of what the whole model costs."""
    out, schedule = tmp_path / "out", CASES[0]
    bundle = chain(*schedule[:2])
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    copy = Path(shutil.copytree(bundle.path, tmp_path / "orin"))
    (copy / "manifest.json").write_text(json.dumps({**manifest, "target": "agx-orin-64gb"}))
    lines_of(command, Bundle.open(copy), schedule[2], library, out)
    record = json.loads((out / "trtexec.json").read_text())
    assert any("chain of 4 graphs" in note and "pyramiddrop" in note for note in record["notes"])
    stages = {one["name"]: one for one in record["stages"]}
    steps = [f"{stage}.{i}" for i in range(4) for stage in ("prefill", "decode")]
    assert list(stages) == ["vision", "select", *steps]
    whole = costs(bundle, bundle.selector(), record["prompt_tokens"], 1)
    for stage, key in (("prefill", "prefill"), ("decode", DECODE_STEP)):
        mine = [one for name, one in stages.items() if name.startswith(stage)]
        assert sum(one["flops"] for one in mine) == whole[key].flops
        assert sum(one["bytes"] for one in mine) == whole[key].bytes
    for name in stages:
        (out / f"{name}.times.json").write_text(made_up_times([1.0]))
        (out / f"{name}.profile.json").write_text(made_up_profile({"a": 1.0}))
        (out / f"{name}.layers.json").write_text(made_up_layers(["a"]))
    told = command("trtexec", "--read", out, "--json", tmp_path / "report.json")
    assert told.code == 0, told.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [one["stage"] for one in report["engines"]] == list(stages)
    assert all(one["roofline"]["ms"] > 0 for one in report["engines"])
