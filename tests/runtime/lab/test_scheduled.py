"""Measurements of bundles whose language model leaves visual tokens behind say so, and compare with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_module

from divprune_edge.manifest import read_manifest
from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.lab.scheduled import schedule_facts, title_of, variant_of

LINE = "fastv: of 58 visual tokens 29 from layer 2 on"


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("scheduled") / "demo-fastv"
    result = run_module(
        "export", "llava", "--prune", "0.9", "--schedule", "fastv", "--no-verify", "--output", str(bundle)
    )
    assert result.returncode == 0, result.stderr
    return bundle


def test_what_tells_bundles_apart(scheduled: Path, demo_bundle: Path) -> None:
    with_cut, without = read_manifest(scheduled), read_manifest(demo_bundle)
    assert schedule_facts(with_cut) == {"schedule": LINE}
    assert variant_of(with_cut) == f"fp32, {LINE}"
    assert schedule_facts(without) == {}
    assert variant_of(without) == "fp32"


def test_an_evaluation_and_a_sweep(scheduled: Path, demo_bundle: Path, tmp_path: Path) -> None:
    more = ["--images", "1", "--keep", "58"]
    result = run_module("runtime", "evaluate", str(scheduled), *more, "--output", str(tmp_path / "one"))
    assert result.returncode == 0, result.stderr
    assert f"Inside the language model visual tokens leave as well: {LINE}." in result.stdout
    assert json.loads((tmp_path / "one" / "evaluation.json").read_text())["schedule"] == LINE
    both = run_module(
        "runtime", "sweep", str(demo_bundle), str(scheduled), *more, "--output", str(tmp_path / "two")
    )
    assert both.returncode == 0, both.stderr
    page = (tmp_path / "two" / "sweep.html").read_text()
    assert f"fp32, {LINE}" in page
    written = (tmp_path / "two" / "sweep.md").read_text()
    for named in (f"{demo_bundle.name} (fp32)", f"{scheduled.name} (fp32, fastv)"):
        assert f"| none | {named} |" in written
        (row,) = (line for line in both.stdout.splitlines() if "none " in line and f" {named} " in line)
        assert " 576 " in row, "no column is squeezed away"
    assert f"none; {LINE}" in page


def test_budgets_that_no_cut_removes_any_of(scheduled: Path, tmp_path: Path) -> None:
    """Who adds one, looks at it or measures with it is told; a larger one needs no word."""
    bundle = tmp_path / "bundle"
    shutil.copytree(scheduled, bundle)
    added = run_module(
        "export", "selectors", str(bundle), "--names", "uniform", "--keep", "40,29", "--no-verify"
    )
    assert added.returncode == 0, added.stderr
    told = "no cut of the schedule removes any of 29 visual tokens"
    assert added.stdout.count("no cut of the schedule") == added.stdout.count(told) == 1
    shown = run_module("runtime", "info", str(bundle))
    assert f"uniform-29: {told}." in shown.stdout and shown.stdout.count("no cut of") == 1
    out = str(tmp_path / "out")
    found = run_module("runtime", "evaluate", str(bundle), "--images", "1", "--keep", "29", "--output", out)
    assert f"With uniform-29 {told}." in found.stdout


def test_without_a_selector_it_is_still_pruned(scheduled: Path, demo_bundle: Path, tmp_path: Path) -> None:
    """Nothing of a bundle with a schedule is called the unpruned model."""
    manifest, plain = read_manifest(scheduled), read_manifest(demo_bundle)
    assert title_of(None, manifest) == "selector none (schedule fastv)"
    assert title_of(None, plain) == "no pruning"
    assert {title_of(m.selectors[0], m) for m in (manifest, plain)} == {"divprune-58"}
    page = tmp_path / "page.html"
    result = run_module(
        "runtime",
        "compare-selectors",
        str(scheduled),
        "--image",
        str(IMAGE),
        "-o",
        str(page),
        "--max-tokens",
        "1",
    )
    assert result.returncode == 0, result.stderr
    assert "<h2>selector none (schedule fastv)</h2>" in page.read_text()
    file = tmp_path / "profile.json"
    asked = ["runtime", "profile", str(scheduled), "--runs", "1", "--warmup", "1", "--json", str(file)]
    assert run_module(*asked).returncode == 0
    report = json.loads(file.read_text())
    assert [variant["title"] for variant in report["variants"]] == [
        "divprune-58",
        "selector none (schedule fastv)",
    ]


def test_a_selector_that_keeps_all_is_measured_alone(tmp_path: Path) -> None:
    """Beside the same tokens there is nothing that pruning could save."""
    bundle, file = tmp_path / "all", tmp_path / "profile.json"
    made = run_module("export", "llava", "--schedule", "fastv", "--no-verify", "--output", str(bundle))
    assert made.returncode == 0, made.stderr
    asked = ["runtime", "profile", str(bundle), "--runs", "1", "--warmup", "1", "--json", str(file)]
    assert run_module(*asked).returncode == 0
    report = json.loads(file.read_text())
    assert [variant["title"] for variant in report["variants"]] == ["selector none (schedule fastv)"]
    assert any("'fastv'" in note and "--against BUNDLE" in note for note in report["notes"])
    assert run_module(*asked, "--against", "divprune-576").returncode == 0
    report = json.loads(file.read_text())
    assert [saving["limit"] for saving in report["savings"]] == [None] * 4


def test_a_profile(scheduled: Path) -> None:
    result = run_module("runtime", "profile", str(scheduled), "--runs", "1", "--warmup", "1", "--alone")
    assert result.returncode == 0, result.stderr
    assert LINE in " ".join(result.stdout.split())
