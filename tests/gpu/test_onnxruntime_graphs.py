"""CUDA graphs of ONNX Runtime: the answers of runs without, over many steps, and none that is given up on the way."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, plan_of

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.backends import binding
from divprune_edge.runtime.backends.captured import GRAPHS_VARIABLE
from divprune_edge.runtime.pipeline import Pipeline

ort = pytest.importorskip("onnxruntime")
if "CUDAExecutionProvider" not in ort.get_available_providers():
    pytest.skip("onnxruntime-gpu is not installed", allow_module_level=True)

QUESTIONS = ("what color is the circle?", "is there a square above the red circle?")
FREE: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}


@pytest.fixture(scope="module", params=[True, False])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plan_of(CHECKPOINT, 58, precision="fp16", dialect="onnxruntime", greedy=request.param)
    return export(plan, tmp_path_factory.mktemp("bundles") / "graphs").folder


@pytest.mark.parametrize("checks", [binding.CHECKED_RUNS, 0])
def test_answers_are_those_of_runs_without(
    bundle: Path, checks: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """100 steps alone, in a batch, and in a chat whose cache grows twice."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (90, 90, 3), dtype=np.uint8) for _ in range(2)]

    def answers(pipeline: Pipeline) -> list[list[int]]:
        found = [pipeline.ask(image, q, **FREE).token_ids for image in images for q in QUESTIONS]
        found += [one.token_ids for one in pipeline.ask_batch([(images[1], q) for q in QUESTIONS], **FREE)]
        chat = pipeline.chat(images[0])
        return found + [chat.ask(q, max_tokens=250, ignore_eos=True).token_ids for q in QUESTIONS]

    monkeypatch.setattr(binding, "CHECKED_RUNS", checks)
    with caplog.at_level(logging.WARNING, "divprune_edge"):
        pipeline = Pipeline(bundle, backend="cuda")
        found = answers(pipeline)
    assert "CUDA graph" not in caplog.text
    assert pipeline.backend.memory.captures  # type: ignore[attr-defined]
    monkeypatch.setenv(GRAPHS_VARIABLE, "off")
    assert found == answers(Pipeline(bundle, backend="cuda"))
