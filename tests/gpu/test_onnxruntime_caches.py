"""ONNX Runtime on CUDA: caches that never leave the device, by CUPTI's own count, and the answers of the CPU."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, plan_of
from images_made import noise_pixels

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.backends.block import MORE_ROWS
from divprune_edge.runtime.backends.memory import DeviceMemory, TensorSpan
from divprune_edge.runtime.pipeline import Pipeline

ort = pytest.importorskip("onnxruntime")
if "CUDAExecutionProvider" not in ort.get_available_providers():
    pytest.skip("onnxruntime-gpu is not installed", allow_module_level=True)

QUESTIONS = ("what color is the circle?", "is there a square above the red circle?")


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared before CUDA graphs are trusted would count as copies."""
    monkeypatch.setattr("divprune_edge.runtime.backends.binding.CHECKED_RUNS", 0)


@pytest.fixture(scope="module", params=["portable", "onnxruntime"])
def pipelines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    """On CUDA, on CUDA with next ids, and on the CPU."""
    folder = tmp_path_factory.mktemp("bundles")
    made = [
        export(
            plan_of(CHECKPOINT, 58, precision="fp16", dialect=request.param, greedy=greedy),
            folder / str(greedy),
        )
        for greedy in (False, True)
    ]
    places = [(made[0], "cuda"), (made[1], "cuda"), (made[0], "cpu")]
    return [Pipeline(bundle.folder, backend=backend) for bundle, backend in places]


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return noise_pixels(90, 90)


def copied(run: Callable[[], Any], trace: Path) -> Counter[str]:
    """Return the bytes that CUDA copied while ``run`` ran: HtoD, DtoH and DtoD."""
    import torch

    torch.zeros(1, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(trace))
    found: Counter[str] = Counter()
    for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
        if event.get("cat") == "gpu_memcpy":
            found[event["name"].split()[1]] += int(event["args"]["bytes"])
    return found


def row_bytes(pipeline: Pipeline) -> int:
    info = pipeline.bundle.manifest.language_model
    return 2 * info.layers * info.kv_heads * info.head_dim * np.dtype(info.cache_dtype).itemsize


def begin(pipeline: Pipeline, rows: Any = None) -> tuple[Any, int, list[int]]:
    manifest = pipeline.bundle.manifest
    visual = np.random.default_rng(1).standard_normal((1, 58, manifest.vision_encoder.width))
    first = manifest.language_model.embedding_rows
    session = pipeline.backend.session()
    slot = session.add(pipeline.backend.to_device(visual.astype(manifest.token_dtype)), rows)
    return session, slot, [1, *range(first, first + 58), 9]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_copies_are_those_of_numpy(dtype: str) -> None:
    memory = DeviceMemory("cuda")
    source = np.random.default_rng(3).standard_normal((5, 40, 16)).astype(dtype)
    held, room = memory.upload(source), memory.upload(np.full((7, 60, 16), 9, dtype))
    columns = [30, 0, 0, 39]
    target = TensorSpan(room, dtype, (7, 60, 16)).part(2, 3)
    memory.copy(TensorSpan(held, dtype, source.shape).part(1, 3), columns, target, before=2)
    wanted = np.full((7, 60, 16), 9, dtype)
    wanted[2:5] = 0
    wanted[2:5, 2:6] = source[1:4][:, columns]
    assert np.array_equal(memory.download(room), wanted)
    assert np.array_equal(memory.download(memory.take(held, [2, 1], axis=0)), source[[2, 1]])
    assert np.array_equal(memory.download(memory.join([held], (3200,))), source.reshape(-1))
    del room  # what is cleared was written to before
    assert not memory.download(memory.zeros((7, 60, 16), dtype)).any()


def test_answers_are_those_of_the_cpu(pipelines: list[Pipeline], pixels: np.ndarray) -> None:
    """Alone, in a batch, and in a conversation that goes on until a cache has grown."""
    options = {"max_tokens": 8, "ignore_eos": True}
    for ours in pipelines[:2]:
        for question in QUESTIONS:
            a, b = (pipeline.ask(pixels, question, **options) for pipeline in (ours, pipelines[2]))
            assert a.token_ids == b.token_ids
        batches = [p.ask_batch([(pixels, q) for q in QUESTIONS], **options) for p in (ours, pipelines[2])]
        assert [a.token_ids for a in batches[0]] == [b.token_ids for b in batches[1]]
        chats = [pipeline.chat(pixels) for pipeline in (ours, pipelines[2])]
        for _ in range(2):
            answers = [chat.ask(QUESTIONS[0], max_tokens=150, ignore_eos=True) for chat in chats]
            assert answers[0].token_ids == answers[1].token_ids


def test_a_step_copies_ids_and_logits(pipelines: list[Pipeline], tmp_path: Path) -> None:
    for ours, said in ((pipelines[0], False), (pipelines[1], True)):
        session, slot, ids = begin(ours)
        session.extend(slot, ids)
        session.step({slot: 5})
        found = copied(lambda: session.step({slot: 5}), tmp_path / "step.json")  # noqa: B023
        logits = 4 * ours.bundle.manifest.language_model.vocabulary
        assert found["DtoH"] <= (8 if said else logits) + 64
        assert found["HtoD"] <= 512


def test_a_cache_stays_on_the_device(pipelines: list[Pipeline], tmp_path: Path) -> None:
    """Rows that are shared, and a cache that grows: nothing of its size passes through the host."""
    ours = pipelines[1]
    session, slot, ids = begin(ours)
    session.extend(slot, [*ids, *([5] * (MORE_ROWS - len(ids)))])
    warm = begin(ours, session.rows(slot, 40))[0]
    warm.extend(0, ids[40:])

    def run() -> None:
        other, place, _ = begin(ours, session.rows(slot, 40))
        other.extend(place, ids[40:])
        session.step({slot: 7})

    found = copied(run, tmp_path / "cache.json")
    visual = 58 * ours.bundle.manifest.vision_encoder.width * 4
    assert found["HtoD"] < visual + 0.1 * MORE_ROWS * row_bytes(ours)
    assert found["DtoH"] < 1024


def test_a_warm_pipeline_waits_for_nothing(pipelines: list[Pipeline], pixels: np.ndarray) -> None:
    warm = Pipeline(pipelines[0].bundle, backend="cuda", warm_up=True)
    first, second = (warm.ask(pixels, QUESTIONS[0], max_tokens=1).timings_ms["prefill"] for _ in range(2))
    assert first < 5 * second
