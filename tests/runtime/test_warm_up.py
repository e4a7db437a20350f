"""``--warm-up``: everything that a first answer waits for, done and measured before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge.runtime.backends import onnxruntime as module
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.pipeline import Pipeline

QUESTION = "what color is the circle?"


def test_a_pipeline_that_is_warm(demo_bundle: Path, image: Path, pipeline: Pipeline) -> None:
    warm = Pipeline(demo_bundle, warm_up=True)
    assert warm.warm_up_ms is not None
    assert warm.warm_up_ms > 0
    assert len(warm._prefix) == 1, "what comes before the image was not kept"
    found, wanted = warm.ask(image, QUESTION), pipeline.ask(image, QUESTION)
    assert found.token_ids == wanted.token_ids
    assert found.timings_ms["warm_up"] == warm.warm_up_ms
    assert "warm_up" not in wanted.timings_ms
    assert pipeline.warm_up_ms is None
    assert warm.with_selector("none").ask(image, QUESTION).timings_ms["warm_up"] == warm.warm_up_ms


def test_from_the_command_line(
    command: Callable[..., Any], demo_bundle: Path, image: Path, tmp_path: Path
) -> None:
    asked = command("ask", demo_bundle, QUESTION, "--image", image, "--warm-up", "--json")
    assert asked.code == 0, asked.err
    assert json.loads(asked.out)["timings_ms"]["warm_up"] > 0
    lines = tmp_path / "q.jsonl"
    lines.write_text(json.dumps({"image": str(image), "question": QUESTION}) + "\n", encoding="utf-8")
    batch = command("batch", demo_bundle, lines, "--warm-up")
    assert batch.code == 0, batch.err
    assert json.loads(batch.out)["answer"] == json.loads(asked.out)["answer"]


def test_wrong_type(demo_bundle: Path) -> None:
    with refused("argument-type", "warm_up"):
        Pipeline(demo_bundle, warm_up="yes")  # type: ignore[arg-type]


def test_the_libraries_of_cuda_are_loaded_before_a_session(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    refuse = "Failed to load libcublasLt.so.13"

    def preload() -> None:
        done.append("preload")
        print(refuse)

    def open_session(*_: object, **__: object) -> None:
        done.append("session")
        raise RuntimeError("CUDA failure 35")

    bundle = Bundle.open(demo_bundle)
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(module.ort, "preload_dlls", preload)
    monkeypatch.setattr(module.ort, "InferenceSession", open_session)
    with refused("onnxruntime-refuses-graph", "CUDA failure 35"):
        open_backend(bundle, "cuda").load(None)
    assert done[:2] == ["preload", "session"]
    assert refuse not in capsys.readouterr().out, "standard output is the answer's"
    monkeypatch.delattr(module.ort, "preload_dlls")
    open_backend(bundle, "cuda")  # older releases have none
