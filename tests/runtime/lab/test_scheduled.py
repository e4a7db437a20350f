"""Measurements of bundles whose language model leaves visual tokens behind say so, and compare with others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_module

from divprune_edge.manifest import read_manifest
from divprune_edge.runtime.lab.scheduled import schedule_facts, variant_of

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


def test_a_profile(scheduled: Path) -> None:
    result = run_module("runtime", "profile", str(scheduled), "--runs", "1", "--warmup", "1", "--alone")
    assert result.returncode == 0, result.stderr
    assert LINE in " ".join(result.stdout.split())
