"""Runs that CUDA could replay from a graph: nothing of them moves, and the answers are those of runs without.

On the CPU the same buffers are bound, and nothing is captured; ``tests/gpu`` has the rest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from exporting import export, plan_of

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime.backends import captured
from divprune_edge.runtime.backends import onnxruntime as backends
from divprune_edge.runtime.backends import steady as steady_runs
from divprune_edge.runtime.backends.binding import Binding
from divprune_edge.runtime.backends.memory import DeviceMemory
from divprune_edge.runtime.pipeline import Pipeline

QUESTIONS = ("what color is the circle?", "is there a square above the red circle?")
FREE: dict[str, Any] = {"max_tokens": 70, "ignore_eos": True}


@pytest.fixture(scope="module", params=["onnxruntime", "static", "decomposed"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {} if request.param == "onnxruntime" else {"capacity": 704}
    plan = plan_of(CHECKPOINT, 58, dialect=request.param, greedy=request.param != "static", **options)
    return export(plan, tmp_path_factory.mktemp("bundles") / request.param).folder


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "wants_graphs", lambda device: True)


@pytest.fixture
def steady(bundle: Path, captures: None) -> Pipeline:
    return Pipeline(bundle, threads=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """Where everything was that each run from a graph read and wrote, by the number of the graph."""
    found: list[dict[str, int]] = []
    whole = Binding._replay

    def replay(self: Binding) -> None:
        whole(self)
        places = {
            name: getattr(held, "address", None) or held.data_ptr() for name, held in self._held.items()
        }
        found.append({**places, "graph": self._graph or 0})

    monkeypatch.setattr(Binding, "_replay", replay)
    return found


@pytest.fixture
def pixels() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (90, 90, 3), dtype=np.uint8) for _ in range(2)]


def files_of(pipeline: Pipeline, *, captured: bool) -> set[str]:
    """Return those of the two graphs that are captured, or that are not, whose runs would be."""
    backend: Any = pipeline.backend
    sessions = {file: backend._sessions[file] for file in ("vision_encoder.onnx", "language_model.onnx")}
    return {file for file, one in sessions.items() if backend.memory.captures_of(one) == captured}


def test_nothing_moves(steady: Pipeline, runs: list[dict[str, int]], pixels: list[np.ndarray]) -> None:
    """Over one question and the next, which begin anew: two graphs, of the encoder and of a step."""
    for question in QUESTIONS:
        steady.ask(pixels[0], question, **FREE)
    graphs = {run["graph"] for run in runs}
    for graph in graphs:
        places = [run for run in runs if run["graph"] == graph]
        assert all(place == places[0] for place in places)
    of_steps = [run for run in runs if "input_ids" in run]
    assert len(graphs) == 2
    assert len(of_steps) == 2 * (FREE["max_tokens"] - 1)
    assert len(runs) == len(of_steps) + 1, "the first run of an encoder finds out the shapes"


def test_a_prompt_as_long_as_one_before(
    steady: Pipeline, runs: list[dict[str, int]], pixels: list[np.ndarray]
) -> None:
    """The second prefill behind the rows that prompts share is captured, the next one replays it, of another image."""
    answers = [steady.ask(image, QUESTIONS[0], **FREE).token_ids for image in (*pixels, *pixels)]
    assert answers[:2] == answers[2:]
    graphs = [run["graph"] for run in runs]
    assert sorted(graphs.count(graph) for graph in set(graphs)) == [2, 3, 4 * (FREE["max_tokens"] - 1)]


def test_answers_are_the_same(bundle: Path, steady: Pipeline, pixels: list[np.ndarray]) -> None:
    """Alone, in a batch, and in a conversation that goes on until a cache has grown; other images in between."""
    plain = Pipeline(bundle, threads=1)
    plain.backend.memory.captures = False  # type: ignore[attr-defined]

    def answers(pipeline: Pipeline) -> list[list[int]]:
        found = [pipeline.ask(image, q, **FREE).token_ids for image in pixels for q in QUESTIONS]
        found += [one.token_ids for one in pipeline.ask_batch([(pixels[1], q) for q in QUESTIONS], **FREE)]
        chat = pipeline.chat(pixels[0])
        return found + [chat.ask(q, max_tokens=150, ignore_eos=True).token_ids for q in QUESTIONS]

    assert answers(steady) == answers(plain)
    assert not files_of(steady, captured=False)


def test_what_is_bound_anew_is_captured_anew(
    steady: Pipeline, runs: list[dict[str, int]], pixels: list[np.ndarray]
) -> None:
    backend: Any = steady.backend
    inputs = {"pixels": steady.vision.read(pixels[:1])[0].pixels}
    backend.encode(inputs)
    backend.encode(inputs)
    ((binding, outputs),) = backend._steady._sets.values()
    binding.output("visual_tokens", backend.memory.empty(outputs["visual_tokens"].shape(), "float32"))
    binding.run()
    assert len({run["graph"] for run in runs}) == len(runs) == 2


def test_what_was_seen_stays(steady: Pipeline, pixels: list[np.ndarray]) -> None:
    """The buffers of the encoder are written to again, not what it gave before."""
    backend = steady.backend
    read = [steady.vision.read([image])[0] for image in (pixels[0], pixels[0], pixels[1])]
    found = [backend.encode({"pixels": one.pixels}) for one in read]
    first, again, other = (np.array(backend.to_host(one.tokens)) for one in found)
    assert np.array_equal(first, again)
    assert not np.array_equal(again, other)


def test_what_was_seen_lies_where_no_replay_writes(
    steady: Pipeline, pixels: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A captured graph has the addresses of the room that its session had for what lies between its nodes.

    That room is the session's again for the outputs of its next run without a graph: of another shape, and of every one
    that there are no more buffers for.
    """
    own, room = {}, DeviceMemory.empty

    def empty(self: DeviceMemory, *arguments: Any, **options: Any) -> Any:
        value = room(self, *arguments, **options)
        own[value.data_ptr()] = value
        return value

    monkeypatch.setattr(DeviceMemory, "empty", empty)
    monkeypatch.setattr(steady_runs, "MOST_SHAPES", 1)
    one = steady.vision.read(pixels[:1])[0].pixels
    for tiles in (1, 1, 1, 2, 2, 3, 1):
        found = steady.backend.encode({"pixels": np.repeat(one, tiles, axis=0)})
        assert all(value.data_ptr() in own for value in found.outputs.values()), tiles


@pytest.mark.usefixtures("captures")
def test_a_replay_that_differs_is_given_up(
    bundle: Path, pixels: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a graph had frozen what the host said: the second step is noticed, and its answer is right."""
    wanted = Pipeline(bundle, threads=1)
    wanted.backend.memory.captures = False  # type: ignore[attr-defined]
    answer = wanted.ask(pixels[0], QUESTIONS[0], **FREE).token_ids
    broken = Pipeline(bundle, threads=1)
    whole, replays = captured.check_replay, []

    def check(plain: Any, replayed: Any) -> bool:
        replays.append(None)
        return whole(plain, [value + 1 if len(replays) == 2 else value for value in replayed])

    monkeypatch.setattr("divprune_edge.runtime.backends.binding.check_replay", check)
    with caplog.at_level(logging.WARNING, "divprune_edge"):
        assert broken.ask(pixels[0], QUESTIONS[0], **FREE).token_ids == answer
    assert "CUDA graph" in caplog.text
    assert len(replays) == 2
    assert files_of(broken, captured=False) == {"language_model.onnx"}


@pytest.mark.usefixtures("captures")
@pytest.mark.parametrize("times", [1, 1000])
def test_a_capture_that_fails_is_given_up(
    bundle: Path,
    pixels: list[np.ndarray],
    times: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As when another thread reserves memory meanwhile: the same run is made without, and those that follow."""
    wanted = Pipeline(bundle, threads=1)
    wanted.backend.memory.captures = False  # type: ignore[attr-defined]
    answer = wanted.ask(pixels[0], QUESTIONS[0], **FREE).token_ids
    whole, failed = ort.InferenceSession.run_with_iobinding, []

    def run(self: Any, binding: Any, options: Any = None) -> None:
        if (
            options is not None
            and options.get_run_config_entry("gpu_graph_id") != "-1"
            and len(failed) < times
        ):
            failed.append(self)
            template = "onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] " * 5
            raise RuntimeError(template + "CUDA failure 901: operation failed due to a previous error")
        whole(self, binding, options)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
    pipeline = Pipeline(bundle, threads=1)
    with caplog.at_level(logging.WARNING, "divprune_edge"):
        for _ in range(2):
            assert pipeline.ask(pixels[0], QUESTIONS[0], **FREE).token_ids == answer
    assert "(CUDA failure 901: " in caplog.text
    assert "DIVPRUNE_CUDA_GRAPHS=off" in caplog.text
    assert len(caplog.records) == len(failed) == len(files_of(pipeline, captured=False)) == min(times, 2)


def test_ids_are_compared_as_they_are() -> None:
    """An id beside the right one is wrong, however close the numbers are."""
    plain = [np.array([[0.5, 2.0]], np.float32), np.array([30_000])]
    assert captured.check_replay(plain, [plain[0] + 0.001, plain[1]])
    assert not captured.check_replay(plain, [plain[0], plain[1] + 1])
    assert not captured.check_replay(plain, [plain[0] + 1, plain[1]])


def test_another_thread_captures_anew(
    steady: Pipeline, runs: list[dict[str, int]], pixels: list[np.ndarray]
) -> None:
    """ONNX Runtime keeps a graph for the thread that captured it."""

    def ask() -> None:
        steady.ask(pixels[0], QUESTIONS[0], **FREE)

    ask()
    first = {run["graph"] for run in runs}
    runs.clear()
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert runs
    assert not first & {run["graph"] for run in runs}


@pytest.mark.usefixtures("captures")
def test_a_graph_that_cannot_be_captured(
    bundle: Path, pixels: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that refuses the option is opened without."""
    make: Callable[..., Any] = backends.ort.InferenceSession

    def refuse(file: Any, options: Any, providers: Any) -> Any:
        if any("enable_cuda_graph" in facts for _, facts in providers):
            raise RuntimeError("This session cannot use the graph capture feature")
        return make(file, options, providers=providers)

    monkeypatch.setitem(steady_runs.CAPTURE, "cpu", {"enable_cuda_graph": "1"})
    monkeypatch.setattr(backends.ort, "InferenceSession", refuse)
    with caplog.at_level(logging.WARNING, "divprune_edge"):
        pipeline = Pipeline(bundle, threads=1)
        assert pipeline.ask(pixels[0], QUESTIONS[0], max_tokens=3, ignore_eos=True).token_ids
    assert "graph capture feature" in caplog.text
    assert files_of(pipeline, captured=False) == {"vision_encoder.onnx", "language_model.onnx"}


@pytest.mark.usefixtures("captures")
def test_one_graph_that_cannot_be_captured_leaves_the_other(
    bundle: Path, pixels: list[np.ndarray], runs: list[dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an encoder with a loop."""
    make: Callable[..., Any] = backends.ort.InferenceSession

    def refuse(file: Any, options: Any, providers: Any) -> Any:
        if "vision" in str(file) and any("enable_cuda_graph" in facts for _, facts in providers):
            raise RuntimeError("This session cannot use the graph capture feature")
        return make(file, options, providers=[(name, {}) for name, _ in providers])

    monkeypatch.setitem(steady_runs.CAPTURE, "cpu", {"enable_cuda_graph": "1"})
    monkeypatch.setattr(backends.ort, "InferenceSession", refuse)
    pipeline = Pipeline(bundle, threads=1)
    for _ in range(2):
        pipeline.ask(pixels[0], QUESTIONS[0], max_tokens=3, ignore_eos=True)
    assert files_of(pipeline, captured=True) == {"language_model.onnx"}
    assert runs
    assert all("input_ids" in run for run in runs)


def test_the_environment_says_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert captured.wants_graphs("cuda")
    assert not captured.wants_graphs("cpu")
    monkeypatch.setenv(captured.GRAPHS_VARIABLE, "off")
    assert not captured.wants_graphs("cuda")
