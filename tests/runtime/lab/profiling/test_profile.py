"""``python -m runtime profile``: end to end on the demo bundle, and the arithmetic of its report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_module
from fake_device import FakeDevice, FakeEngines
from raising import assert_told

from divprune_edge.errors import UserError
from divprune_edge.models.targets import find_target
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.charts import marked_bars, stacked_bars
from divprune_edge.runtime.lab.profiling import roofline
from divprune_edge.runtime.lab.profiling.limit import savings
from divprune_edge.runtime.lab.profiling.measure import DECODE, STAGES, Measured, MeasuredAnswer, Variant
from divprune_edge.runtime.lab.profiling.roofline import Machine, StageCost, bound, costs, machine_of
from divprune_edge.runtime.lab.profiling.samples import summarise

os.environ.setdefault("OMP_NUM_THREADS", "1")

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SECONDS", 0.02)


FEW = ("--runs", 2, "--warmup", 1, "--answer-tokens", "1,3", "--threads", 1)


def variant(bundle: Path, selector: str | None, **changes: Any) -> Variant:
    """A variant for arithmetic: nothing runs."""
    opened = Bundle.open(bundle)
    made = Variant("t", opened, opened.selector(selector), None, None)  # type: ignore[arg-type]
    return replace(made, **changes)


def test_end_to_end(command: Run, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    json_file, html_file = tmp_path / "profile.json", tmp_path / "profile.html"
    monkeypatch.setenv("COLUMNS", "40")  # too narrow: nothing is cut all the same
    result = command("profile", demo_bundle, *FEW, "--json", json_file, "--html", html_file)
    assert result.code == 0, result.err
    assert "…" not in result.out and "peak MiB" in result.out
    assert "divprune-58: 58 visual of" in result.out
    assert "90 % pruning can save at most" in result.out
    report = json.loads(json_file.read_text())
    pruned, full = report["variants"]
    assert (pruned["visual_tokens"], full["visual_tokens"]) == (58, 576)
    for found in (pruned, full):
        assert [row["stage"] for row in found["stages"]] == [*STAGES, DECODE]
        counts = [row["ms"]["count"] for row in found["stages"]]
        assert counts == [2, 2, 2, 2, 4]
        assert all(row["ms"]["smallest"] > 0 for row in found["stages"])
        times = {row["stage"]: row for row in found["stages"]}
        assert times["prefill"]["roofline"]["ms"] > 0
        assert times["preprocess"]["roofline"] is None
        assert found["ttft_ms"]["median"] < found["total_ms"]["3"]["median"]
        assert found["peak_bytes"] > 30 << 20
    assert [saving["tokens"] for saving in report["savings"]] == [1, 3]
    first = report["savings"][0]
    for saving in report["savings"]:
        for part in ("low", "median", "high"):
            assert saving["measured"][part] <= saving["limit"][part]
    assert first["sentence"] in result.out
    page = html_file.read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert page.count('class="verdict"') == 1
    assert report["summary"] in page.replace("&#x27;", "'")
    assert page.count('class="note"') == len(report["notes"]) == 1  # where the rooflines are from
    for stage in (*STAGES, DECODE):
        assert f"no pruning: {stage}" in page
    parser = Fetches()
    parser.feed(page)
    assert parser.found == []


class Fetches(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.found.append(f"{tag} {value}")
        if tag == "script":
            self.found.append(tag)


def test_alone_and_unpruned(command: Run, demo_bundle: Path, tmp_path: Path) -> None:
    for options in (("--alone",), ("--selector", "none")):
        file = tmp_path / "one.json"
        result = command("profile", demo_bundle, *FEW, *options, "--json", file)
        assert result.code == 0, result.err
        report = json.loads(file.read_text())
        assert len(report["variants"]) == 1
        assert report["savings"] == []


def test_against_another_bundle(command: Run, demo_bundle: Path, bundle_copy: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    result = command("profile", demo_bundle, *FEW, "--against", bundle_copy, "--json", file)
    assert result.code == 0, result.err
    report = json.loads(file.read_text())
    assert [v["title"] for v in report["variants"]] == ["demo: divprune-58", "copy: divprune-58"]
    # Another bundle may differ in more than pruning: no limit is claimed.
    assert [saving["limit"] for saving in report["savings"]] == [None, None]
    assert "at most" not in report["savings"][0]["sentence"]


def test_a_target_that_is_not_this_machine_gives_no_ratio(
    command: Run, demo_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "target.json"
    result = command("profile", demo_bundle, *FEW, "--alone", "--target", "agx-orin-64gb", "--json", file)
    assert result.code == 0, result.err
    report = json.loads(file.read_text())
    prefill = next(row for row in report["variants"][0]["stages"] if row["stage"] == "prefill")
    assert prefill["roofline"]["ms"] > 0
    assert prefill["ratio"] is None
    assert any("another machine" in note for note in report["notes"])


def test_a_bundle_without_costs_has_no_rooflines_for_its_graphs(
    command: Run, bundle_copy: Path, tmp_path: Path
) -> None:
    manifest = bundle_copy / "manifest.json"
    data = json.loads(manifest.read_text())
    data["vision_encoder"].pop("flops")
    data["language_model"].pop("cost")
    manifest.write_text(json.dumps(data))
    file = tmp_path / "old.json"
    result = command("profile", bundle_copy, *FEW, "--alone", "--json", file)
    assert result.code == 0, result.err
    report = json.loads(file.read_text())
    rows = {row["stage"]: row["roofline"] for row in report["variants"][0]["stages"]}
    assert rows["vision"] is rows["prefill"] is rows[DECODE] is None
    assert rows["select"] is not None
    assert any("older export" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--runs", 0], ["count-out-of-range", "--runs is 0", "at least 1"]),
        (["--warmup", 0], ["count-out-of-range", "--warmup is 0"]),
        (["--answer-tokens", "1,x"], ["option-invalid", "--answer-tokens is '1,x'", "1,16,64,256"]),
        (["--answer-tokens", "99999"], ["answer-too-long", "99999 tokens", "--answer-tokens"]),
        (["--target", "orin"], ["target-unknown", "'orin'"]),
        (["--against", "divprune-58"], ["comparison-with-itself", "--against divprune-58"]),
        (["--against", "nothing"], ["selector-not-in-bundle", "'nothing'"]),
        (["--against", "uniform-58"], ["selector-not-in-bundle", "--selector uniform --keep 58"]),
        (["--image", "https://x.org/a.png"], ["image-is-address", "https://x.org/a.png"]),
        (["--against", "none", "--alone"], ["options-exclusive", "--alone", "--against"]),
        (["--backend", "tpu"], ["backend-unknown", "'tpu'"]),
        (["--image", "/no/such.png"], ["image-missing", "/no/such.png"]),
    ],
)
def test_bad_options(command: Run, demo_bundle: Path, options: list[object], parts: list[str]) -> None:
    result = command("profile", demo_bundle, "--runs", 1, "--warmup", 1, *options)
    assert_told(result.code, result.err, *parts)
    assert result.err.count("\n") == 1


@pytest.fixture(scope="module")
def static_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint with a cache that has room for 58 visual tokens and not for 576."""
    folder = tmp_path_factory.mktemp("bundles") / "static"
    options = ("--prune", "0.9", "--no-verify", "--dialect", "static", "--output", str(folder))
    result = run_module("export", "llava", *options)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_cache_without_room_for_the_unpruned_prompt(
    command: Run, static_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "static.json"
    result = command("profile", static_bundle, *FEW, "--json", file)
    assert result.code == 0, result.err
    report = json.loads(file.read_text())
    assert [v["title"] for v in report["variants"]] == ["divprune-58"]
    assert any("no room for the prompt of 'no pruning'" in note for note in report["notes"])
    asked = command("profile", static_bundle, *FEW, "--against", "none")
    assert_told(asked.code, asked.err, "answer-too-long", "'no pruning'", "room for 0")


def test_positions_of_pruned_tokens_are_counted(command: Run, tmp_path: Path) -> None:
    """A prompt that has few tokens, but whose positions the model does not have, or none for an answer."""
    folder = tmp_path / "original"
    options = ("--prune", "0.9", "--no-verify", "--positions", "original", "--output", str(folder))
    assert run_module("export", "llava", *options).returncode == 0
    ask = ("profile", folder, "--alone", "--runs", 1, "--warmup", 1, "--question")
    result = command(*ask, f"{'How ' * 1700}many?", "--answer-tokens", 4)
    assert_told(result.code, result.err, "prompt-too-long", "2048", "--positions compact")
    assert result.err.count("\n") == 1
    result = command(*ask, "How many?", "--answer-tokens", 1600)
    assert_told(result.code, result.err, "answer-too-long", "1600 tokens")


def test_the_tensorrt_backend_over_a_fake_device(
    command: Run, static_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not TensorRT: what is shown is that every stage is measured through that backend as well."""
    from divprune_edge.runtime import backends

    def open_fake(bundle: Bundle, name: str, threads: int | None) -> TensorRtBackend:
        return TensorRtBackend(bundle, FakeDevice(), FakeEngines(bundle))

    monkeypatch.setattr(backends, "open_backend", open_fake)
    file = tmp_path / "fake.json"
    options = ("--backend", "tensorrt", "--target", "agx-orin-64gb", "--alone", "--json", file)
    result = command("profile", static_bundle, *FEW, *options)
    assert result.code == 0, result.err
    report = json.loads(file.read_text())
    assert report["about"]["backend"] == "tensorrt"
    rows = {row["stage"]: row for row in report["variants"][0]["stages"]}
    assert rows["prefill"]["ratio"] > 0
    assert rows[DECODE]["ms"]["count"] == 4


def test_engines_that_are_not_built(
    command: Run, demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not asked for by name is left out with a note; what was is an error."""
    from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

    load = OnnxRuntimeBackend.load

    def only_pruned(self: OnnxRuntimeBackend, selector: Any) -> None:
        if selector is None:
            raise UserError("There is no engine: build it.", code="engines-missing")
        load(self, selector)

    monkeypatch.setattr(OnnxRuntimeBackend, "load", only_pruned)
    file = tmp_path / "one.json"
    result = command("profile", demo_bundle, *FEW, "--json", file)
    assert result.code == 0, result.err
    report = json.loads(file.read_text())
    assert len(report["variants"]) == 1
    assert "It is not compared with no pruning: There is no engine: build it." in report["notes"]
    asked = command("profile", demo_bundle, *FEW, "--against", "none")
    assert_told(asked.code, asked.err, "engines-missing")


def test_a_report_that_cannot_be_written(command: Run, demo_bundle: Path, tmp_path: Path) -> None:
    result = command("profile", demo_bundle, *FEW, "--alone", "--json", tmp_path / "no" / "p.json")
    assert_told(result.code, result.err, "output-unwritable", "p.json", "--json")
    assert result.out == "", "it is told before anything is measured"
    result = command("profile", demo_bundle, *FEW, "--alone", "--html", tmp_path)
    assert_told(result.code, result.err, "output-unwritable", "it is a folder", "--html")


def test_what_pruning_saves_by_hand(demo_bundle: Path) -> None:
    """Unpruned 10 + 60 with 30 per step, pruned 10 + 10 with 25 per step."""

    def of(selector: str | None, prefill: float, step: float) -> Measured:
        answers = (MeasuredAnswer((4.0, 5.0, 1.0, prefill), (step,) * 3),) * 5
        return Measured(
            variant(demo_bundle, selector), 1, 1, 58 if selector is None else 576, 100, answers, 0, answers[0]
        )

    one, three = savings(of(None, 10, 25), of("none", 60, 30), [1, 3])
    assert one.prefill_share == pytest.approx(60 / 70)
    assert one.limit is not None
    assert one.limit.median == pytest.approx(70 / 9)
    assert one.measured.median == pytest.approx(70 / 20)
    assert three.prefill_share == pytest.approx(60 / 130)
    assert three.limit is not None
    assert three.limit.median == pytest.approx(130 / 59)
    assert three.measured.median == pytest.approx(130 / 70)
    assert three.sentence == (
        "Answer of 3 tokens: prefill is 46 % of this workload, decode steps take 25 ms instead of 30 ms, so 90 % "
        "pruning can save at most 2.20× [2.20, 2.20] end to end; measured 1.86× [1.86, 1.86]."
    )
    assert "steps" not in one.sentence


def test_rooflines_by_hand() -> None:
    machine = Machine("m", "M", bandwidth=1e9, rates={"fp16": 1e12, "fp32": 1e10, "tf32": 2e10}, source="")
    assert bound(StageCost(2 * 10**9, 10**6, "fp16"), machine).ms == pytest.approx(2.0)
    # Every backend multiplies float32 as float32, not as TF32.
    assert bound(StageCost(2 * 10**9, 10**6, "fp32"), machine).ms == pytest.approx(200.0)
    slow = bound(StageCost(10**6, 3 * 10**6, "int4"), machine)
    assert (slow.ms, slow.by) == (pytest.approx(3.0), "memory")
    assert bound(StageCost(10**15, 10**6, "int8"), machine).by == "memory"


def test_costs_of_the_stages(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    pruned, full = (costs(bundle, bundle.selector(name), n, 9) for name, n in ((None, 70), ("none", 588)))
    assert set(pruned) == {"vision", "select", "prefill", DECODE}
    assert set(full) == {"vision", "prefill", DECODE}
    assert pruned["vision"] == full["vision"]
    assert full["prefill"].flops > 8 * pruned["prefill"].flops
    info = Bundle.open(demo_bundle).manifest.language_model
    row = 2 * info.layers * info.kv_heads * info.head_dim * 4
    assert full[DECODE].bytes - pruned[DECODE].bytes == (588 - 70) * row


def test_this_cpu_is_measured() -> None:
    machine = roofline.measure_host(1)
    assert machine.rates["fp32"] > 1e8
    assert (machine.rates["fp16"], machine.rates["int8"]) == (
        2 * machine.rates["fp32"],
        4 * machine.rates["fp32"],
    )
    assert machine.bandwidth > 1e8
    assert f"{machine.bandwidth / 1e9:.1f} GB/s (copy by 1 thread)" in machine.source
    assert f"{roofline.LOOKS} looks gave " in machine.source
    low, high = map(float, re.findall(r"([\d.]+) to ([\d.]+) GB/s", machine.source)[0])
    assert low <= high


def test_machines_of_targets() -> None:
    orin = find_target("agx-orin-64gb")
    machine = machine_of(orin)
    assert machine is not None
    assert machine.bandwidth == orin.bandwidth
    assert machine_of(find_target("cpu")) is None


def test_percentiles() -> None:
    summary = summarise([float(i) for i in range(101)])
    assert (summary.median, summary.p90, summary.p99) == (50, 90, 99)
    assert (summary.count, summary.smallest, summary.largest) == (101, 0, 100)


def test_the_bound_holds_in_every_round(demo_bundle: Path) -> None:
    """Whatever the noise: no factor is beyond it, so that no median or quartile is."""
    noise = np.random.default_rng(3)

    def of(selector: str | None) -> Measured:
        made = [MeasuredAnswer(tuple(noise.gamma(2, 5, 4)), tuple(noise.gamma(2, 5, 15))) for _ in range(40)]
        return Measured(
            variant(demo_bundle, selector),
            1,
            1,
            58 if selector is None else 576,
            100,
            tuple(made),
            0,
            made[0],
        )

    for saving in savings(of(None), of("none"), [1, 4, 16]):
        assert saving.limit is not None
        assert saving.measured.low <= saving.limit.low
        assert saving.measured.median <= saving.limit.median
        assert saving.measured.high <= saving.limit.high


def test_small_stages_do_not_vanish() -> None:
    bars = stacked_bars("t", "ms", {"full": {"vision": 1000.0, "select": 0.001, "prefill": 0.0}})
    assert [float(w) for w in re.findall(r'<rect x="[\d.]+" y="\d+" width="([\d.]+)"', bars)][-2:] == [
        3.0,
        0.0,
    ]
    assert ">vision 1e+03, select 0.001, prefill 0</text>" in bars
    marked = marked_bars(
        "t", "ms", "at least", {"select": (0.001, 0.0005), "faster": (1.0, 2.0), "x": (9.0, None)}
    )
    assert ">0.001 ms, at least 0.0005</text>" in marked
    assert ">1 ms, at least 2</text>" in marked
    assert ">9 ms</text>" in marked
    assert 'width="3.0"' in marked
