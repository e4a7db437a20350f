"""Several questions at once: each answer is the one that asking alone gives."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import same
from exporting import export, plan_of
from images_made import noise_image
from one_slot import OneSlot
from PIL import Image
from raising import assert_told, refused

from divprune_edge.errors import UserError
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.processing.layout import PromptIds
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.backends.block import MORE_ROWS
from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from divprune_edge.runtime.batch import ask_each
from divprune_edge.runtime.batch_cli import read_questions
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.pipeline import Pipeline

QUESTIONS = (
    "what color is the circle?",
    "is there a square above the big red circle and below the small green triangle?",
    "how many?",
    "what does the sign say?",
    "is the circle blue?",
)


@pytest.fixture(scope="module", params=["portable", "onnxruntime", "static", "decomposed"])
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The demo checkpoint in each dialect."""
    folder = tmp_path_factory.mktemp("bundles") / request.param
    options = {"capacity": 704} if DIALECTS[request.param].for_tensorrt else {}
    return Pipeline(
        export(plan_of(CHECKPOINT, 58, dialect=request.param, **options), folder).folder, threads=1
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Five questions about four images; the first and the last are about the same one."""
    folder = tmp_path_factory.mktemp("four")
    paths = [folder / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        noise_image(60 + 20 * i, 90, i).save(path)
    return list(zip([*paths, paths[0]], QUESTIONS, strict=True))


def alone(pipeline: Pipeline, pairs: list[tuple[Path, str]], **decoding: object) -> list[Answer]:
    return [pipeline.ask(image, question, **decoding) for image, question in pairs]


def all_same(found: list[Answer], wanted: list[Answer]) -> None:
    for one, other in zip(found, wanted, strict=True):
        same(one, other)


def test_lengths_differ_and_so_do_the_ends(asked: Pipeline, pairs: list) -> None:
    # The demo answers in a few words: most end by themselves, at different steps.
    wanted = alone(asked, pairs, max_tokens=12)
    all_same(asked.ask_batch(pairs, max_tokens=12), wanted)
    assert len({answer.prompt_tokens for answer in wanted}) > 2
    assert {answer.finish_reason for answer in wanted} >= {"stop"}


def test_no_end_before_the_limit(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 40, "ignore_eos": True}
    all_same(asked.ask_batch(pairs, **options), alone(asked, pairs, **options))


def test_sampling_with_a_seed_is_that_of_each_alone(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 16, "ignore_eos": True, "temperature": 2.0, "seed": 5, "repetition_penalty": 1.3}
    found = asked.ask_batch(pairs, **options)
    all_same(found, alone(asked, pairs, **options))
    assert len({answer.token_ids for answer in found}) > 1


def test_a_stop_string_ends_its_own_sequence(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 24, "ignore_eos": True, "temperature": 3.0, "seed": 1}
    text = alone(asked, pairs, **options)[2].answer
    stop = text[len(text) // 3 :][:3]
    wanted = alone(asked, pairs, stop=(stop,), **options)
    assert {answer.finish_reason for answer in wanted} == {"stop_string", "length"}
    all_same(asked.ask_batch(pairs, stop=(stop,), **options), wanted)


def test_sequences_end_one_after_the_other(asked: Pipeline, pairs: list) -> None:
    """Four reach the end of the context, each at another step; the last one goes on."""
    room = 30
    most = asked.bundle.manifest.language_model.positions
    filler = "circle " * (most - asked.ask(*pairs[0], max_tokens=1).prompt_tokens - room)
    longer = [(image, filler + "circle " * 5 * i) for i, (image, _) in enumerate(pairs[:4])] + pairs[4:]
    options = {"max_tokens": 60, "ignore_eos": True}
    wanted = alone(asked, longer, **options)
    assert [answer.finish_reason for answer in wanted] == [*["context"] * 4, "length"]
    all_same(asked.ask_batch(longer, **options), wanted)


def test_an_image_is_seen_once_and_a_few_at_a_time(
    asked: Pipeline, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = OnnxRuntimeBackend.encode
    monkeypatch.setattr(
        OnnxRuntimeBackend,
        "encode",
        lambda s, inputs, *p: (seen.append(len(inputs["pixels"])), encode(s, inputs, *p))[1],
    )
    monkeypatch.setattr(OnnxRuntimeBackend, "images_at_once", 3)
    asked.ask_batch(pairs, max_tokens=2)
    assert seen == [3, 1]


def test_one_question_and_none(asked: Pipeline, pairs: list) -> None:
    all_same(asked.ask_batch(pairs[:1], max_tokens=6), alone(asked, pairs[:1], max_tokens=6))
    assert asked.ask_batch([]) == []


def test_unpruned(asked: Pipeline, pairs: list) -> None:
    other = asked.with_selector("none")
    all_same(other.ask_batch(pairs[:2], max_tokens=6), alone(other, pairs[:2], max_tokens=6))


def test_chunks(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 8, "prefill_chunk": 9}
    all_same(asked.ask_batch(pairs, **options), alone(asked, pairs, **options))


def test_sequences_join_and_leave_between_steps(asked: Pipeline, pairs: list) -> None:
    """More questions than slots: each begins where another has ended, and its answer is the one it gives alone."""
    wanted = alone(asked, pairs, max_tokens=12)
    session = asked.backend.session(2)
    waiting, found, writers = list(enumerate(pairs)), {}, {}
    while waiting or writers:
        while waiting and len(writers) < 2:
            number, (image, question) = waiting.pop(0)
            seen = asked.vision.see(asked.vision.read([image]), asked.selector)
            prompt = asked.prompts.encode([Turn("user", question, images=1)], [58])
            writer = asked.writer(prompt, Decoding(max_tokens=12))
            slot = session.add(seen.tokens)
            writer.take(session.extend(slot, prompt.ids))
            writers[slot] = number, writer
        with refused("slots-taken", 2) if len(writers) == 2 else nullcontext():
            session.remove(session.add(seen.tokens))
        going = {slot: writer for slot, (_, writer) in writers.items() if not writer.ended}
        if going:
            for slot, prediction in session.step({slot: w.next[0] for slot, w in going.items()}).items():
                going[slot].take(prediction)
        for slot, (number, writer) in list(writers.items()):
            if writer.ended:
                found[number] = writer.result().token_ids
                del writers[slot]
                session.remove(slot)
    assert [found[i] for i in range(len(pairs))] == [answer.token_ids for answer in wanted]


def test_one_waits_while_another_goes_on(asked: Pipeline, pairs: list) -> None:
    """A sequence that is not stepped keeps its cache, also when it is in the middle of its prompt."""
    session = asked.backend.session(3)
    rows = asked.bundle.manifest.language_model.embedding_rows
    width = asked.bundle.manifest.vision_encoder.width
    visual = asked.backend.to_device(
        np.random.default_rng(0).standard_normal((1, 58, width)).astype(np.float32)
    )
    prompt = [1, *range(rows, rows + 58), 7, 8, 9]
    first, second = session.add(visual), session.add(visual)
    wanted = session.extend(first, prompt).logits.copy()
    session.extend(second, prompt[:30])
    for token in (5, 6, 7):
        session.step({first: token})
    assert np.allclose(session.extend(second, prompt[30:]).logits, wanted, atol=1e-4)
    together = session.step({first: 11, second: 5})
    second_after_five = together[second].logits.copy()
    alone_first = OneSlot(asked.backend, visual)
    alone_first.extend([*prompt, 5, 6, 7])
    assert np.allclose(together[first].logits, alone_first.extend([11]), atol=1e-4)
    session.truncate(first, len(prompt))
    again = session.step({first: 5})[first].logits.copy()
    assert np.allclose(again, second_after_five, atol=1e-4)
    taken = session.rows(second, 40)
    third = session.add(visual, taken)
    assert session.length(third) == 40
    assert np.allclose(session.extend(third, prompt[40:]).logits, wanted, atol=1e-4)


def test_a_sequence_at_the_end_of_its_block_waits_unharmed(asked: Pipeline) -> None:
    """Its last row is not where the padding goes that it is fed meanwhile: it goes on when the block has grown."""
    session = asked.backend.session(2)
    width = asked.bundle.manifest.vision_encoder.width
    visual = asked.backend.to_device(np.zeros((1, 58, width), np.float32))
    prompt = [1, *np.random.default_rng(1).integers(5, 60, MORE_ROWS - 1).tolist()]
    for _ in range(2):
        session.add(visual)
    session.extend(0, prompt)
    session.extend(1, [1, 7])
    session.step({1: 8})
    found = session.step({0: 9})[0].logits.copy()
    lonely = OneSlot(asked.backend, visual)
    lonely.extend(prompt)
    assert np.allclose(found, lonely.extend([9]), atol=1e-4)


def test_what_comes_before_the_image_is_computed_once(asked: Pipeline, pairs: list) -> None:
    pipeline = copy(asked)
    pipeline._prefix = {}
    widths: list[int] = []
    backend = pipeline.backend

    class Watched:
        def __init__(self, session: Any) -> None:
            self.session = session

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def extend(self, slot: int, ids: Any, *rest: Any) -> Any:
            widths.append(len(ids))
            return self.session.extend(slot, ids, *rest)

    class Backend:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def session(self, slots: int) -> Watched:
            return Watched(backend.session(slots))

    pipeline.backend = Backend()  # type: ignore[assignment]
    for _ in range(2):
        found = pipeline.ask_batch(pairs, max_tokens=1)
    before, rest = widths[0], [answer.prompt_tokens - widths[0] for answer in found]
    assert before > 0
    assert widths == [before, *rest, *rest]


def test_an_error_names_its_question(asked: Pipeline, pairs: list) -> None:
    with refused("question-empty", "Question 2"):
        asked.ask_batch([pairs[0], (pairs[1][0], " ")])
    with refused("image-missing", "Question 3", "nowhere.png"):
        asked.ask_batch([*pairs[:2], ("nowhere.png", "what?")])


def test_lines_in_and_lines_out(asked: Pipeline, pairs: list, command: Callable[..., Any]) -> None:
    file = pairs[0][0].parent / f"{asked.bundle.manifest.language_model.dialect}.jsonl"
    lines = [{"image": image.name, "question": text, "id": i} for i, (image, text) in enumerate(pairs)]
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    outcome = command("batch", asked.bundle.path, file, "--size", 2, "--max-tokens", 6)
    assert outcome.code == 0, outcome.err
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert [{name: line[name] for name in lines[0]} for line in found] == lines
    wanted = alone(asked, pairs, max_tokens=6)
    assert [line["token_ids"] for line in found] == [list(answer.token_ids) for answer in wanted]


def test_a_question_may_hold_what_ends_a_line_for_python(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = {"image": "a.png", "question": "one\u2028two\x85three?"}
    text = json.dumps(line, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_text(f"{text}\n\n{text}\r\n", encoding="utf-8")
    assert [found.entry for found in read_questions(tmp_path / "q.jsonl")] == [line, line]


def test_a_bad_line_costs_no_other(asked: Pipeline, pairs: list, command: Callable[..., Any]) -> None:
    folder = pairs[0][0].parent
    (folder / "broken.png").write_bytes(pairs[0][0].read_bytes()[:60])
    good = {"image": pairs[0][0].name, "question": QUESTIONS[0]}
    lines = [
        json.dumps(good),
        "nothing",
        json.dumps({**good, "image": "none.png", "id": 7}),
        json.dumps({**good, "image": "broken.png"}),
        "",
        json.dumps({**good, "question": "circle " * 9999}),
        "[1]",
        json.dumps({"image": "a.png"}),
        json.dumps({**good, "question": "nice \ud83d?"}),
        "[" * 100_000,
        '{"question": "' + "x" * (2 << 20) + '"}',
        json.dumps({**good, "image": "x" * 300}),
        json.dumps(good),
    ]
    file = folder / "bad.jsonl"
    file.write_text("\n".join(lines) + "\n")
    outcome = command("batch", asked.bundle.path, file, "--size", 4, "--max-tokens", 6)
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert_told(outcome.code, outcome.err, "questions-unanswered", "9 of 12", f"'{file}'", expected=1)
    assert [(line.get("line"), line.get("code")) for line in found] == [
        (None, None),
        (2, "questions-invalid"),
        (3, "image-missing"),
        (4, "image-damaged"),
        (6, "prompt-too-long"),
        (7, "questions-invalid"),
        (8, "questions-invalid"),
        (None, None),
        (10, "questions-invalid"),
        (11, "questions-invalid"),
        (12, "image-unreadable"),
        (None, None),
    ]
    assert found[2]["id"] == 7
    file.write_bytes(b"\xff\xd8\n")
    outcome = command("batch", asked.bundle.path, file)
    assert json.loads(outcome.out)["error"].endswith("line 1 is not UTF-8.")
    assert (
        found[0]["token_ids"]
        == found[-1]["token_ids"]
        == list(alone(asked, pairs[:1], max_tokens=6)[0].token_ids)
    )


def test_one_whose_tokens_find_no_place_fails_alone(
    asked: Pipeline, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where positions of what was pruned go beyond the context, which is known once the images are seen."""
    place, (_, question) = asked.prompts.place, pairs[1]

    def placed(prompt: PromptIds, images: Any) -> PromptIds:
        if prompt.ids == second.ids:
            raise UserError("The prompt takes 9 positions.", code="prompt-too-long")
        return place(prompt, images)

    second = asked.encode_prompt([Turn("user", question, images=1)], asked.vision.read([pairs[1][0]]))
    monkeypatch.setattr(asked.prompts, "place", placed)
    found = ask_each(asked, pairs[:3], Decoding(max_tokens=6))
    assert isinstance(found[1], UserError) and found[1].code == "prompt-too-long"
    monkeypatch.undo()
    all_same([found[0], found[2]], alone(asked, [pairs[0], pairs[2]], max_tokens=6))


def test_a_long_line_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "q.jsonl").open("wb") as file:
        file.seek(300 << 20)
        file.write(b'\n{"image": "a", "question": "b"}')
    tracemalloc.start()
    found = list(read_questions(tmp_path / "q.jsonl"))
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert [line.error is None for line in found] == [False, True]


def test_a_file_of_questions_is_checked_before_anything_is_loaded(
    tmp_path: Path, command: Callable[..., Any]
) -> None:
    (tmp_path / "q.jsonl").write_text("\n \n")
    outcome = command("batch", tmp_path / "no-bundle", tmp_path / "q.jsonl")
    assert_told(outcome.code, outcome.err, "questions-empty", "q.jsonl")
    size = command("batch", tmp_path, tmp_path / "q.jsonl", "--size", 0)
    assert_told(size.code, size.err, "count-out-of-range", 0)
    for name in ("none.jsonl", "x" * 300, "."):
        missing = command("batch", tmp_path, tmp_path / name)
        assert_told(missing.code, missing.err, "questions-missing")
