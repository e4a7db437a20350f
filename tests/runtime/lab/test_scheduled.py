"""Measurements of bundles whose language model leaves visual tokens behind say so, and compare with others."""

from __future__ import annotations

import json
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
    written = (tmp_path / "two" / "sweep.md").read_text()
    for name, variant in ((demo_bundle.name, "fp32"), (scheduled.name, f"fp32, {LINE}")):
        assert f"| none | {name} ({variant}) |" in written
        assert f"{name} ({variant})" in both.stdout
    assert f"none; {LINE}" in page


def test_a_profile(scheduled: Path) -> None:
    result = run_module("runtime", "profile", str(scheduled), "--runs", "1", "--warmup", "1", "--alone")
    assert result.returncode == 0, result.stderr
    assert LINE in " ".join(result.stdout.split())
