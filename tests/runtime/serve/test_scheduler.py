"""Sequences join and leave between steps, and every answer is the one of ``ask``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from conftest import run_module
from over_fake import over_fake
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.errors import DivpruneError
from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.backends import onnxruntime
from divprune_edge.runtime.backends.block import BlockSession
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.backends.tensorrt_language import TensorRtSession
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.encoder import Encoder
from divprune_edge.runtime.serve.engine import Engine
from divprune_edge.runtime.serve.fair_lock import FairLock
from divprune_edge.runtime.serve.job import (
    Conversation,
    Ended,
    Event,
    Failed,
    Job,
    Medium,
    PromptReady,
    TextPiece,
    Utterance,
)
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.scheduler import Scheduler

from .conftest import PATIENCE, QUESTION, noise, soon

Open = Callable[..., Engine]
LONG = {"max_tokens": 200, "ignore_eos": True}


class Told:
    """What is told of one question."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, (Ended, Failed)):
            self._over.set()

    def wait(self) -> Event:
        assert self._over.wait(PATIENCE)
        return self.events[-1]

    @property
    def text(self) -> str:
        assert isinstance(self.wait(), Ended), self.events[-1]
        return "".join(event.text for event in self.events if isinstance(event, TextPiece))

    @property
    def code(self) -> str:
        event = self.wait()
        assert isinstance(event, Failed), event
        return event.error.code

    @property
    def reused(self) -> int:
        event = self.wait()
        assert isinstance(event, Ended)
        return event.reused

    def begun(self) -> None:
        until(lambda: any(isinstance(event, TextPiece) for event in self.events))


@pytest.fixture
def opened(asked: Pipeline) -> Iterator[Open]:
    engines: list[Engine] = []

    def start(pipeline: Pipeline = asked, **options: Any) -> Engine:
        limits = ServerLimits().changed([f"{name}={n}" for name, n in options.pop("limits", {}).items()])
        engines.append(Engine(pipeline, limits, **options))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.stop(0)


def ask(
    engine: Engine, text: str = QUESTION, *, image: Path | None = IMAGE, client: str = "a", **decoding: Any
) -> tuple[Told, Job]:
    media = () if image is None else (Medium((image.read_bytes(),)),)
    selector = decoding.pop("selector", engine.pipeline.selector)
    told = Told()
    question = Conversation((Utterance("user", text, media),), selector, Decoding(**decoding))
    return told, engine.submit(question, client, told)


def count(engine: Engine, name: str, **labels: str) -> float:
    return engine.metrics.registry.get_sample_value(f"divprune_{name}", labels) or 0.0


def until(holds: Callable[[], bool]) -> None:
    assert soon(holds)


def test_many_at_once_are_answered_as_alone(opened: Open, asked: Pipeline) -> None:
    engine = opened(limits={"slots": 3}, chunk=16)
    questions = [f"How many {what} are there?" for what in ("circles", "squares", "stars", "red shapes", "x")]
    options = [{"max_tokens": 4 + 5 * number, "ignore_eos": True} for number in range(5)]
    answers = [ask(engine, text, **more)[0] for text, more in zip(questions, options, strict=True)]
    plain = ask(engine, "Who are you?", image=None, **LONG)[0]
    for answer, text, more in zip(answers, questions, options, strict=True):
        assert answer.text == asked.ask(IMAGE, text, **more).answer
    assert plain.text == asked.ask(None, "Who are you?", **LONG).answer
    assert count(engine, "step_sequences_bucket", le="2.0") < count(engine, "step_sequences_count")


def test_one_joins_while_another_is_being_written(opened: Open, asked: Pipeline) -> None:
    engine = opened()
    long, _ = ask(engine, **LONG)
    long.begun()
    short, _ = ask(engine, "What does the sign say?", max_tokens=3)
    assert short.text == asked.ask(IMAGE, "What does the sign say?", max_tokens=3).answer
    assert not any(isinstance(event, Ended) for event in long.events)
    assert long.text == asked.ask(IMAGE, QUESTION, **LONG).answer


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the session is asked for: "step", or the slot and the number of ids that it is fed."""
    made: list[Any] = []
    extend, step = BlockSession.extend, BlockSession.step

    def extended(session: BlockSession, slot: int, ids: Any, *more: Any, **options: Any) -> Any:
        made.append((slot, len(ids)))
        return extend(session, slot, ids, *more, **options)

    def stepped(session: BlockSession, *given: Any) -> Any:
        made.append("step")
        return step(session, *given)

    monkeypatch.setattr(BlockSession, "extend", extended)
    monkeypatch.setattr(BlockSession, "step", stepped)
    return made


def test_a_prompt_is_fed_in_pieces_between_steps(opened: Open, asked: Pipeline, calls: list[Any]) -> None:
    engine = opened(chunk=16, prefix_cache=0)
    long, _ = ask(engine, **LONG)
    long.begun()
    calls.clear()
    second, _ = ask(engine, "What does the sign say?", max_tokens=2)
    text, made = second.text, [*calls]
    places = [place for place, call in enumerate(made) if call != "step"]
    assert len(places) > 3 and all(made[place][1] <= 16 for place in places)
    assert {later - place for place, later in pairwise(places)} == {2}  # one step between two pieces
    assert text == asked.ask(IMAGE, "What does the sign say?", max_tokens=2).answer


def test_who_leaves_while_a_prompt_is_fed_has_no_more_of_it_fed(
    opened: Open, asked: Pipeline, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nobody else waits for anything."""
    engine = opened(chunk=16, prefix_cache=0)
    assert ask(engine, max_tokens=2)[0].text == asked.ask(IMAGE, QUESTION, max_tokens=2).answer
    assert calls[0][1] == 64
    reached, released, extend = threading.Event(), threading.Event(), BlockSession.extend

    def held(*given: Any, **options: Any) -> Any:
        reached.set()
        assert released.wait(PATIENCE)
        return extend(*given, **options)

    monkeypatch.setattr(BlockSession, "extend", held)
    calls.clear()
    _, job = ask(engine)
    assert reached.wait(PATIENCE)
    engine.leave(job)
    released.set()
    assert ask(engine, max_tokens=1)[0].text
    assert len([call for call in calls if call != "step"]) == 1 + 2


@pytest.mark.parametrize(
    ("image", "chunk", "together"),
    [(IMAGE, 256, [3]), (IMAGE, 180, [2, 1]), (IMAGE, 100, [1, 1, 1]), (None, 256, [4, 2])],
)
def test_short_prompts_are_fed_together_as_far_as_a_piece_goes(
    opened: Open,
    asked: Pipeline,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    image: Path | None,
    chunk: int,
    together: list[int],
) -> None:
    """None of them is parted where it does not fit: it is fed whole behind the next step."""
    step, engine = BlockSession.step, opened(limits={"slots": 7}, chunk=chunk, prefix_cache=0)
    long, _ = ask(engine, **LONG)
    long.begun()
    reached, released = threading.Event(), threading.Event()

    def held(*given: Any) -> Any:
        reached.set()
        released.wait(PATIENCE)
        return step(*given)

    monkeypatch.setattr(BlockSession, "step", held)
    assert reached.wait(PATIENCE)
    questions = ["What does the sign say?", "Is there a star?", QUESTION, "Who?", "Why?", "How?"][
        : sum(together)
    ]
    told = [ask(engine, text, image=image, max_tokens=2, ignore_eos=True)[0] for text in questions]
    until(lambda: len(engine._scheduler._ready) == len(questions))
    calls.clear()
    released.set()
    answers = [one.text for one in told]
    groups = [[*group] for stepped, group in groupby([*calls], lambda call: call == "step") if not stepped]
    assert [len(group) for group in groups] == together
    assert all(ids < 90 and (image is None or ids > 60) for group in groups for _, ids in group)
    assert answers == [asked.ask(image, text, max_tokens=2, ignore_eos=True).answer for text in questions]


def test_a_cache_that_grows_is_joined_between_batches_only(
    opened: Open, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("growing") / "demo"
    made = run_module("export", "llava", "--prune", "0.9", "--no-verify", "--output", str(folder))
    assert made.returncode == 0, made.stderr
    pipeline = Pipeline(folder, threads=1)
    engine = opened(pipeline)
    assert not engine.joins_between_steps
    long, _ = ask(engine, **LONG)
    long.begun()
    others = [ask(engine, f"Is there {what}?", max_tokens=5)[0] for what in ("a circle", "a star")]
    assert not any(other.events and isinstance(other.events[-1], TextPiece) for other in others)
    texts = [other.text for other in others]
    assert isinstance(long.events[-1], Ended)
    expected = [
        pipeline.ask(IMAGE, f"Is there {what}?", max_tokens=5).answer for what in ("a circle", "a star")
    ]
    assert texts == expected
    assert long.text == pipeline.ask(IMAGE, QUESTION, **LONG).answer


def test_an_image_is_encoded_once_whatever_is_asked_of_it(opened: Open, asked: Pipeline) -> None:
    engine = opened()
    for number, (text, selector) in enumerate(
        (text, asked.bundle.selector(name))
        for name in ("divprune-58", "divprune-144", "none")
        for text in (QUESTION, "What does the sign say?")
    ):
        expected = asked.with_selector(selector.id if selector else "none").ask(IMAGE, text)
        answer, _ = ask(engine, text, selector=selector)
        assert answer.text == expected.answer
        assert count(engine, "images_encoded_total") == 1
        assert count(engine, "images_cached_total") == number
        # The second question about an image begins behind it.
        assert (answer.reused > expected.visual_tokens) == (number % 2 == 1)


def test_without_caches_every_question_is_seen_and_fed_anew(opened: Open, asked: Pipeline) -> None:
    engine = opened(image_cache=0, prefix_cache=0)
    for number in range(1, 3):
        answer, _ = ask(engine)
        assert answer.text == asked.ask(IMAGE, QUESTION).answer
        assert answer.reused == 0
        assert count(engine, "images_encoded_total") == number


def test_the_cache_of_images_is_bounded(opened: Open, tmp_path: Path) -> None:
    engine = opened(image_cache=1 << 20)
    for seed in range(4):
        noise(seed).save(path := tmp_path / f"{seed}.png")
        ask(engine, image=path, max_tokens=1)[0].wait()
        assert count(engine, "image_cache_bytes") <= 1 << 20
    assert count(engine, "image_cache_bytes") > 0


def test_a_system_text_is_prefilled_once(opened: Open, asked: Pipeline, tmp_path: Path) -> None:
    engine, system = opened(), "Look at the image, and answer in one word."
    reused = []
    for seed in range(2):
        noise(seed).save(path := tmp_path / f"{seed}.png")
        told = Told()
        turns = (Utterance("system", system), Utterance("user", QUESTION, (Medium((path.read_bytes(),)),)))
        engine.submit(Conversation(turns, asked.selector, Decoding(max_tokens=5)), "a", told)
        assert told.text == asked.ask(path, QUESTION, system=system, max_tokens=5).answer
        reused.append(told.reused)
    assert reused[0] == 0 < reused[1] < 58


@pytest.mark.parametrize("image", [None, IMAGE])
def test_a_conversation_is_kept_with_its_last_answer(
    opened: Open, asked: Pipeline, image: Path | None
) -> None:
    engine, media = opened(), () if image is None else (Medium((image.read_bytes(),)),)
    turns, chat, known = [Utterance("user", "What is there?", media)], asked.chat(image), []
    for number in range(4):
        options: dict[str, Any] = {"temperature": 4.0, "top_k": 30, "seed": number, "max_tokens": 20}
        told, question = Told(), Conversation(tuple(turns), asked.selector, Decoding(**options))
        engine.submit(question, "a", told)
        assert told.text == chat.ask(turns[-1].text, **options).answer
        ended, seen = told.wait(), told.events[0]
        assert isinstance(ended, Ended) and isinstance(seen, PromptReady)
        known.append((ended.reused, seen.prompt_tokens, ended.tokens))
        turns += [Utterance("assistant", told.text), Utterance("user", f"And {number}?")]
    assert sum(tokens for _, _, tokens in known) > 8  # or there would be next to nothing to keep
    # The id that ends an answer is not fed. Of a first question about an image, the image is kept.
    whole = [prompt + tokens - 1 for _, prompt, tokens in known]
    reused = [reused for reused, _, _ in known]
    assert reused[0] == 0 and reused[2:] == whole[1:-1]
    assert reused[1] == whole[0] if image is None else 58 < reused[1] < known[0][1]
    assert len(engine._scheduler._prefixes._held) == 1  # each begins with the one before


def test_the_answer_to_a_first_question_about_an_image_takes_no_room(opened: Open) -> None:
    engine = opened()
    for text in ("What does the sign say?", QUESTION):
        assert ask(engine, text, **LONG)[0].text
    (held,) = engine._scheduler._prefixes._held
    assert len(held.ids) < 90


class Held:
    """An engine whose encoder waits at its first image, and whose further ones are counted."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine, self.order = engine, list[str]()
        self._reached, self._released = threading.Event(), threading.Event()
        vision = engine._encoder._vision
        encode = vision.encode

        def held(*given: Any) -> Any:
            self.order.append("encoded")
            self._reached.set()
            assert self._released.wait(PATIENCE)
            return encode(*given)

        monkeypatch.setattr(vision, "encode", held)

    def ask(self, name: str, *media: Path) -> tuple[Told, Job]:
        told = Told()

        def tell(event: Event) -> None:
            if isinstance(event, PromptReady):
                self.order.append(name)
            told(event)

        images = tuple(Medium((path.read_bytes(),)) for path in media)
        question = Conversation((Utterance("user", QUESTION, images),), None, Decoding(max_tokens=1))
        return told, self.engine.submit(question, "a", tell)

    def hold(self, *media: Path) -> tuple[Told, Job]:
        asked = self.ask("held", *media)
        assert self._reached.wait(PATIENCE)
        return asked

    def go_on(self) -> None:
        self._released.set()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{seed}.png" for seed in range(4)]
    for seed, path in enumerate(paths):
        noise(seed).save(path)
    return paths


def test_who_has_nothing_to_encode_passes(
    opened: Open, monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    engine = opened()
    ask(engine, selector=None)[0].wait()
    held = Held(engine, monkeypatch)
    first, _ = held.hold(*pictures[:3])
    for name, *media in (("known", IMAGE), ("text",), ("new", pictures[3])):
        last, _ = held.ask(name, *media)
    held.go_on()
    assert isinstance(first.wait(), Ended) and isinstance(last.wait(), Ended)
    order = "encoded known text encoded encoded held encoded new"
    assert held.order == order.split()


def test_for_who_left_no_further_image_is_encoded(
    opened: Open, monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    held = Held(opened(), monkeypatch)
    _, job = held.hold(*pictures[:3])
    held.engine.leave(job)
    last, _ = held.ask("last")
    held.go_on()
    assert isinstance(last.wait(), Ended)
    assert held.order == ["encoded", "last"]


def test_nor_for_whose_time_is_over(
    opened: Open, monkeypatch: pytest.MonkeyPatch, pictures: list[Path]
) -> None:
    held = Held(opened(), monkeypatch)
    told, job = held.hold(*pictures[:3])
    job.deadline = 0.0
    held.go_on()
    assert told.code == "request-timeout"
    assert held.order == ["encoded"]


def test_who_leaves_is_let_go_of(opened: Open) -> None:
    engine = opened(limits={"slots": 1})
    long, job = ask(engine, **LONG)
    waiting, other = ask(engine)
    long.begun()
    engine.leave(other)
    engine.leave(job)
    until(lambda: count(engine, "sequences_running") == 0)
    assert count(engine, "requests_total", outcome="left") == 2
    assert not any(isinstance(event, Ended) for event in (*long.events, *waiting.events))
    assert ask(engine)[0].text == "purple"


def test_a_full_server_says_when_to_come_again(opened: Open) -> None:
    engine = opened(limits={"slots": 1, "queue": 1})
    first, _ = ask(engine, **LONG)
    first.begun()
    second, _ = ask(engine)
    with pytest.raises(DivpruneError) as refused:
        ask(engine)
    assert refused.value.code == "server-busy"
    assert 1 <= engine.retry_after <= 60
    assert first.text and second.text == "purple"
    assert ask(engine)[0].text == "purple"


def test_time_is_limited(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(limits={"slots": 1, "request_seconds": 1})
    step = BlockSession.step
    monkeypatch.setattr(BlockSession, "step", lambda s, *given: (time.sleep(0.05), step(s, *given))[1])
    first, _ = ask(engine, **LONG)
    second, _ = ask(engine, **LONG)
    assert first.code == second.code == "request-timeout"
    until(lambda: count(engine, "sequences_running") == 0)


@pytest.mark.parametrize(
    ("text", "decoding", "code"),
    [
        ("", {}, "question-empty"),
        ("word " * 3000, {}, "prompt-too-long"),
        (QUESTION, {"stop": ("a </s> b",)}, "stop-string-special-token"),
        (QUESTION, {"stop_ids": (10**6,)}, "stop-id"),
    ],
)
def test_what_cannot_be_asked_harms_nobody_else(
    opened: Open, text: str, decoding: dict[str, Any], code: str
) -> None:
    engine = opened()
    long, _ = ask(engine, **LONG)
    assert ask(engine, text, **decoding)[0].code == code
    assert long.text
    assert count(engine, "requests_total", outcome=code) == 1


@pytest.mark.parametrize("method", ["add", "extend", "step"])
def test_after_a_failure_the_next_question_is_answered(
    opened: Open, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = opened()
    works = getattr(BlockSession, method)

    def broken(session: BlockSession, *given: Any, **options: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(BlockSession, method, broken)
    told, _ = ask(engine, **LONG)
    assert told.code == "server-failed"
    assert "secret" not in str(told.events[-1])
    monkeypatch.setattr(BlockSession, method, works)
    assert ask(engine)[0].text == "purple"
    assert engine.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("thread", "method"), [(Scheduler, "_turn"), (Encoder, "_prepare")])
def test_without_its_threads_nothing_is_taken(
    opened: Open, monkeypatch: pytest.MonkeyPatch, thread: type, method: str
) -> None:
    def broken(*given: Any) -> Any:
        raise SystemExit  # which no thread survives

    monkeypatch.setattr(thread, method, broken)
    engine = opened()
    assert ask(engine)[0].code == "server-failed"
    until(lambda: engine.lost and not engine.alive)
    with pytest.raises(DivpruneError) as refused:
        ask(engine)
    assert refused.value.code == "server-stopping"
    assert not engine._in_flight


def test_an_answer_without_room_fails_alone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened()
    (long, job), (other, _) = (ask(engine, client=client, **LONG) for client in "ab")
    long.begun()
    other.begun()
    check = BlockSession.check_room

    def full(session: BlockSession, slot: int, count: int) -> None:
        check(session, slot, 10**6 if slot == job.slot else count)

    monkeypatch.setattr(BlockSession, "check_room", full)
    assert long.code == "sequence-too-long"
    assert other.text
    assert count(engine, "requests_total", outcome="sequence-too-long") == 1


def test_stopping_answers_what_was_asked(opened: Open, asked: Pipeline) -> None:
    engine = opened(limits={"slots": 1})
    answers = [ask(engine, max_tokens=20, ignore_eos=True)[0] for _ in range(3)]
    engine.stop(60)
    expected = asked.ask(IMAGE, QUESTION, max_tokens=20, ignore_eos=True).answer
    assert [answer.text for answer in answers] == [expected] * 3
    with pytest.raises(DivpruneError) as refused:
        ask(engine)
    assert refused.value.code == "server-stopping"
    assert not engine.alive


def test_what_is_told_begins_with_what_was_seen(opened: Open) -> None:
    told, _ = ask(opened(), max_tokens=2)
    told.wait()
    seen = told.events[0]
    assert isinstance(seen, PromptReady)
    assert [len(one.kept) for one in seen.media] == [58]


def test_on_a_device_that_does_one_thing_at_a_time(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's stand-in: its encoder and its language model share memory and a stream."""
    folder = tmp_path / "demo"
    options = ["--prune", "0.9", "--dialect", "decomposed", "--precision", "fp32", "--capacity", "512"]
    made = run_module("export", "llava", *options, "--no-verify", "--output", str(folder))
    assert made.returncode == 0, made.stderr
    pipeline, _ = over_fake(Bundle.open(folder), monkeypatch, slots=3)
    questions = [f"Is there a {what}?" for what in ("circle", "star", "cross", "square", "ring")]
    expected = [pipeline.ask(IMAGE, text, max_tokens=5).answer for text in questions]
    long = pipeline.ask(IMAGE, QUESTION, max_tokens=60, ignore_eos=True).answer
    encode, step = TensorRtBackend.encode, TensorRtSession.step
    busy: set[str] = set()

    def alone(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            assert not busy
            busy.add(name)
            time.sleep(0.005)
            try:
                return function(*given)
            finally:
                busy.discard(name)

        return call

    monkeypatch.setattr(TensorRtBackend, "encode", alone("encode", encode))
    monkeypatch.setattr(TensorRtSession, "step", alone("step", step))
    engine = opened(pipeline, limits={"slots": 3}, image_cache=0)
    first, _ = ask(engine, max_tokens=60, ignore_eos=True)
    first.begun()
    answers = [ask(engine, text, max_tokens=5)[0] for text in questions]
    assert [answer.text for answer in answers] == expected
    assert not isinstance(first.events[-1], Ended) or len(first.events) > 20
    assert first.text == long


def test_visual_tokens_leave_as_the_question_decides(opened: Open, tmp_path: Path) -> None:
    """Inside the language model: a prompt is one piece, and no other question goes on from its image."""
    folder = tmp_path / "demo"
    options = ["--prune", "0.9", "--schedule", "fastv", "--dialect", "decomposed", "--precision", "fp32"]
    options += ["--capacity", "512", "--no-verify", "--output", str(folder)]
    made = run_module("export", "llava", *options)
    assert made.returncode == 0, made.stderr
    pipeline = Pipeline(folder, threads=1)
    engine = opened(pipeline, chunk=16)
    long, _ = ask(engine, **LONG)
    long.begun()
    for text in ("What does the sign say?", QUESTION, "What does the sign say?"):
        answer, _ = ask(engine, text, max_tokens=6)
        assert answer.text == pipeline.ask(IMAGE, text, max_tokens=6).answer
        assert answer.reused < 20
    assert long.text == pipeline.ask(IMAGE, QUESTION, **LONG).answer
    catalog = Catalog(pipeline.bundle, "demo", 0, pipeline.selector, True)
    assert catalog.entry("demo")["divprune"]["schedule"] == "fastv"
    catalog.check_schedule("fastv")
    with refused("schedule-not-in-bundle", "'none'"):
        catalog.check_schedule("none")


@pytest.mark.parametrize("captures", [True, False])
def test_no_thread_computes_while_another_one_may_capture(
    opened: Open, asked: Pipeline, captures: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is captured is ended by whatever another thread asks of CUDA meanwhile."""
    monkeypatch.setattr(onnxruntime, "wants_graphs", lambda device: captures)
    whole, running, beside = ort.InferenceSession.run_with_iobinding, [], []

    def run(self: Any, *given: Any) -> None:
        running.append(threading.get_ident())
        try:
            whole(self, *given)
            # Long enough for the other thread to come, if it may.
            if not beside and self.get_inputs()[0].name != "source":
                time.sleep(0.02)
            beside.extend({*running} - {threading.get_ident()})
        finally:
            running.remove(threading.get_ident())

    pipeline = Pipeline(asked.bundle.path, threads=1)
    engine = opened(pipeline)
    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run)
    long, _ = ask(engine, max_tokens=60, ignore_eos=True)
    long.begun()
    others = []
    for seed in range(3):
        noise(seed).save(path := tmp_path / f"{seed}.png")
        others.append(ask(engine, image=path, max_tokens=2)[0])
    assert all(isinstance(one.wait(), Ended) for one in (long, *others))
    assert bool(beside) != captures


def test_turns_go_to_who_came_first() -> None:
    turns, order = FairLock(), []

    def wait() -> None:
        with turns:
            order.append("other")

    with turns:
        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: turns._given == 2)
    with turns:
        order.append("own")
    waiter.join(PATIENCE)
    assert order == ["other", "own"]
