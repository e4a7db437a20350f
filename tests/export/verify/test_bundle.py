"""How much is verified: whether it can be done here, and how many layers memory allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exporting import export, failures, plan_of
from raising import refused

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.verify import available, verify_bundle
from divprune_edge.export.verify.bundle import affordable_layers, available_memory, bytes_needed
from divprune_edge.export.verify.comparison import at_most, cosine_error, relative_error


def test_it_can_be_done_here() -> None:
    assert available() is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"torch", "onnxruntime"}
    monkeypatch.setattr(
        "divprune_edge.export.verify.find_spec", lambda name: None if name in absent else object()
    )
    assert available() == "torch and onnxruntime are not installed"
    absent.remove("torch")
    assert available() == "onnxruntime is not installed"


def test_memory_decides_the_depth(plan: ExportPlan) -> None:
    assert affordable_layers(plan, None) is None
    assert affordable_layers(plan, 2**60) is None
    assert affordable_layers(plan, bytes_needed(plan, 6)) is None
    assert affordable_layers(plan, bytes_needed(plan, 6) - 1) == 4
    assert affordable_layers(plan, bytes_needed(plan, 3)) == 3


def test_too_little_memory_for_anything_is_refused(plan: ExportPlan, staged: Path) -> None:
    with refused("memory-too-small", "0.0 GiB"):
        verify_bundle(plan, staged, lambda line: None, memory=1000)


def test_the_system_says_how_much_is_free() -> None:
    free = available_memory()
    assert free is None or free > 2**20


def test_every_stage_reports(plan: ExportPlan, staged: Path) -> None:
    lines: list[str] = []
    result = verify_bundle(plan, staged, lines.append)
    assert {check.stage for check in result.checks} == {
        "weights",
        "structure",
        "vision",
        "selection",
        "language",
    }
    assert "loading the reference" in lines
    assert sum(line.startswith("weight ") for line in lines) > 50
    assert len({(check.stage, check.name) for check in result.checks}) == len(result.checks)


def test_a_budget_of_all_tokens_is_verified(plan: ExportPlan, tmp_path: Path) -> None:
    everything = plan_of(plan.checkpoint.folder, keep=25)
    assert failures(everything, export(everything, tmp_path / "bundle").folder) == set()


def test_what_is_not_a_number_does_not_pass() -> None:
    nothing, one = np.full(3, np.nan, np.float32), np.ones(3, np.float32)
    for value in (
        relative_error(nothing, one),
        relative_error(one, nothing),
        cosine_error(nothing, one),
        relative_error(one[:2], one),
        cosine_error(one[:2], one),
    ):
        assert not at_most("stage", "name", value, 1.0).passed


def test_errors_are_relative_to_the_largest_value() -> None:
    assert relative_error(np.array([0.5, 101.0]), np.array([0.5, 100.0])) == pytest.approx(0.01)
    assert relative_error(np.array([0.02]), np.array([0.01])) == pytest.approx(0.01)
    assert cosine_error(
        np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[3.0, 0.0], [1.0, 0.0]])
    ) == pytest.approx(1 - 2**-0.5)
