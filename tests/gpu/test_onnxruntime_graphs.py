"""CUDA graphs of ONNX Runtime: the numbers of runs without, over many steps, and none that is given up on the way.

Both are fed the same ids: with ids of their own, two logits that are as good as equal would part them for good, as the
cache's capacity, which a graph has instead of its length, changes in which order an attention adds up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, plan_of

from divprune_edge.models.demo import CHECKPOINT, IMAGE
from divprune_edge.runtime.backends import binding
from divprune_edge.runtime.backends.captured import GRAPHS_VARIABLE
from divprune_edge.runtime.pipeline import Pipeline

ort = pytest.importorskip("onnxruntime")
if "CUDAExecutionProvider" not in ort.get_available_providers():
    pytest.skip("onnxruntime-gpu is not installed", allow_module_level=True)

QUESTIONS = ("what color is the circle?", "is there a square above the red circle?")
SLOTS, STEPS = 2, 600
"""Steps over which a cache grows twice."""


@pytest.fixture(scope="module", params=[True, False])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = plan_of(CHECKPOINT, 58, precision="fp16", dialect="onnxruntime", greedy=request.param)
    return export(plan, tmp_path_factory.mktemp("bundles") / "graphs").folder


@pytest.fixture(params=[binding.CHECKED_RUNS, 0])
def pipelines(
    bundle: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[tuple[Pipeline, Pipeline]]:
    """With graphs, and without; no graph may have been given up at the end."""
    monkeypatch.setattr(binding, "CHECKED_RUNS", request.param)
    captured = Pipeline(bundle, backend="cuda")
    backend: Any = captured.backend
    assert backend.memory.captures
    monkeypatch.setenv(GRAPHS_VARIABLE, "off")
    with caplog.at_level(logging.WARNING, "divprune_edge"):
        yield captured, Pipeline(bundle, backend="cuda")
    assert "CUDA graph" not in caplog.text
    manifest = captured.bundle.manifest
    for graph in (manifest.vision_encoder, manifest.language_model):
        assert backend.memory.captures_of(backend._session(graph)), graph.file


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two results in float16 are the same but for the order in which numbers were added."""
    return bool(np.abs(found - wanted).max() <= 0.02 * max(np.abs(wanted).max(), 1))


def test_logits_are_those_of_runs_without(pipelines: tuple[Pipeline, Pipeline]) -> None:
    """Prefills of one length again and again, and steps of one sequence and of two, whose cache grows."""
    rng = np.random.default_rng(0)
    info = pipelines[0].bundle.manifest.language_model
    visual = rng.standard_normal((1, 58, int(info.inputs[1].shape[2]))).astype(info.inputs[1].dtype)
    prompt = [1, *range(info.embedding_rows, info.embedding_rows + 58), 9, 8]
    sessions = [one.backend.session(SLOTS) for one in pipelines]
    for _ in range(4):
        found = []
        for pipeline, session in zip(pipelines, sessions, strict=True):
            slot = session.add(pipeline.backend.to_device(visual))
            found.append(np.array(session.extend(slot, prompt).logits))
            session.remove(slot)
        assert close(*found)
    for pipeline, session in zip(pipelines, sessions, strict=True):
        for _ in range(SLOTS):
            slot = session.add(pipeline.backend.to_device(visual))
            session.extend(slot, prompt)
    for step in range(STEPS):
        ids = {slot: int(rng.integers(5, 50)) for slot in range(1 + step % 3 % SLOTS)}
        said = [session.step(ids) for session in sessions]
        for slot in ids:
            assert close(*(np.array(one[slot].logits) for one in said)), (step, slot)


def test_visual_tokens_are_those_of_runs_without(pipelines: tuple[Pipeline, Pipeline]) -> None:
    """Of several shapes in turn, all of which are still held when the last one is there."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (90, 90, 3), dtype=np.uint8) for _ in range(3)]
    held = []
    for count in (1, 1, 2, 1, 3, 2, 1):
        pixels = [
            np.concatenate([one.pixels for one in pipeline.vision.read(images[:count])])
            for pipeline in pipelines
        ]
        held.append(
            [
                (one.backend, one.backend.encode({"pixels": each}).tokens)
                for one, each in zip(pipelines, pixels, strict=True)
            ]
        )
    for pair in held:
        assert close(*(np.array(backend.to_host(tokens)) for backend, tokens in pair))


def test_answers_are_those_of_runs_without(pipelines: tuple[Pipeline, Pipeline]) -> None:
    """Alone, in a batch, and in a chat: answers as the demo was taught them, which end before noise begins."""

    def answers(pipeline: Pipeline) -> list[list[int]]:
        found = [pipeline.ask(IMAGE, question).token_ids for question in QUESTIONS * 2]
        found += [one.token_ids for one in pipeline.ask_batch([(IMAGE, q) for q in QUESTIONS])]
        chat = pipeline.chat(IMAGE)
        return found + [chat.ask(question).token_ids for question in QUESTIONS]

    assert answers(pipelines[0]) == answers(pipelines[1])
