"""What a chain's graphs read of their layers, compared with the reference; and that a difference is found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint
from exporting import export, failures, plan_of
from qwen_checkpoints import make_qwen_checkpoint

from divprune_edge.models.schedules import METHODS
from divprune_edge.models.schedules.method import Watch

READING = [name for name, method in METHODS.items() if method.watches]
TEXT = {"num_hidden_layers": 6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def get(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        make: Any = make_checkpoint if family == "llava" else make_qwen_checkpoint
        text = {**TEXT, "max_position_embeddings": 512}
        return make(folder / "checkpoint", family=family, text=text)

    return get


@pytest.mark.parametrize("method", READING)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_a_chain_passes(checkpoint: Any, tmp_path: Path, family: str, method: str) -> None:
    # Behind the layers to which Qwen3-VL adds features of its tower.
    cuts = [{"before": 3, "keep": 9}, {"before": 5, "keep": 4}]
    (tmp_path / "own.json").write_text(json.dumps({"method": method, "cuts": cuts}))
    plan = plan_of(checkpoint(family), 16, schedule=str(tmp_path / "own.json"))
    assert failures(plan, export(plan, tmp_path / "bundle").folder) == set()


@pytest.mark.parametrize("dialect", ["onnxruntime", "static", "decomposed"])
def test_in_other_dialects(checkpoint: Any, tmp_path: Path, dialect: str) -> None:
    plan = plan_of(checkpoint("qwen3_vl"), 16, schedule="pyramiddrop", dialect=dialect)
    assert failures(plan, export(plan, tmp_path / "bundle").folder) == set()


def test_a_graph_that_reads_another_layer_is_found(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(checkpoint("llava"), 16, schedule="fastv")
    folder = export(plan, tmp_path / "bundle").folder
    fastv = METHODS["fastv"]
    early = replace(fastv.watches[0], offset=-1)
    monkeypatch.setitem(METHODS, "fastv", replace(fastv, watches=(early,)))
    assert failures(plan, folder) == {"schedule: scores"}


def test_a_graph_that_reads_otherwise_is_found(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(checkpoint("llava"), 16, schedule="v2drop")
    folder = export(plan, tmp_path / "bundle").folder
    v2drop, movement = METHODS["v2drop"], METHODS["v2drop"].watches[0]
    other = Watch("movement", lambda view: movement.reference(view) * 1.01, movement.body)
    monkeypatch.setitem(METHODS, "v2drop", replace(v2drop, watches=(other,)))
    assert failures(plan, folder) == {"schedule: scores"}


def test_a_model_too_big_to_run_is_run_in_part(checkpoint: Any, tmp_path: Path) -> None:
    """A whole one of a few layers: what the chain stores is compared weight by weight."""
    plan = plan_of(checkpoint("llava"), 16, schedule="fastv")
    assert failures(plan, export(plan, tmp_path / "bundle").folder, layers=4) == set()
