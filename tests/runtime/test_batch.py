"""Several questions at once: each answer is the one that asking alone gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_module
from PIL import Image
from raising import assert_told, refused

from divprune_edge.runtime import batch as module
from divprune_edge.runtime.backends.growing import GrowingBatch
from divprune_edge.runtime.backends.in_place import InPlaceBatch
from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from divprune_edge.runtime.batch_cli import read_questions
from divprune_edge.runtime.pipeline import Answer, Pipeline

QUESTIONS = (
    "what color is the circle?",
    "is there a square above the big red circle and below the small green triangle?",
    "how many?",
    "what does the sign say?",
    "is the circle blue?",
)


@pytest.fixture(scope="module")
def fused_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint in dialect ``onnxruntime``."""
    folder = tmp_path_factory.mktemp("bundles") / "fused"
    arguments = ("--prune", "0.9", "--no-verify", "--dialect", "onnxruntime", "--output", str(folder))
    result = run_module("export", "llava", *arguments)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module", params=["portable", "onnxruntime"])
def asked(request: pytest.FixtureRequest, fused_bundle: Path, demo_bundle: Path) -> Pipeline:
    return Pipeline(demo_bundle if request.param == "portable" else fused_bundle, threads=1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Five questions about four images; the first and the last are about the same one."""
    folder = tmp_path_factory.mktemp("four")
    paths = [folder / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (60 + 20 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return list(zip([*paths, paths[0]], QUESTIONS, strict=True))


def alone(pipeline: Pipeline, pairs: list[tuple[Path, str]], **decoding: object) -> list[Answer]:
    return [pipeline.ask(image, question, **decoding) for image, question in pairs]


def same(found: list[Answer], wanted: list[Answer]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.token_ids == b.token_ids
        assert (a.answer, a.finish_reason, a.prompt_tokens) == (b.answer, b.finish_reason, b.prompt_tokens)
        assert np.array_equal(a.kept_indices, b.kept_indices)


def test_lengths_differ_and_so_do_the_ends(asked: Pipeline, pairs: list) -> None:
    # The demo answers in a few words: most end by themselves, at different steps.
    wanted = alone(asked, pairs, max_tokens=12)
    same(asked.ask_batch(pairs, max_tokens=12), wanted)
    assert len({answer.prompt_tokens for answer in wanted}) > 2
    assert {answer.finish_reason for answer in wanted} >= {"stop"}


def test_no_end_before_the_limit(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 40, "ignore_eos": True}
    same(asked.ask_batch(pairs, **options), alone(asked, pairs, **options))


def test_sampling_with_a_seed_is_that_of_each_alone(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 16, "ignore_eos": True, "temperature": 2.0, "seed": 5, "repetition_penalty": 1.3}
    found = asked.ask_batch(pairs, **options)
    same(found, alone(asked, pairs, **options))
    assert len({answer.token_ids for answer in found}) > 1


def test_a_stop_string_ends_its_own_sequence(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 24, "ignore_eos": True, "temperature": 3.0, "seed": 1}
    text = alone(asked, pairs, **options)[2].answer
    stop = text[len(text) // 3 :][:3]
    wanted = alone(asked, pairs, stop=(stop,), **options)
    assert {answer.finish_reason for answer in wanted} == {"stop_string", "length"}
    same(asked.ask_batch(pairs, stop=(stop,), **options), wanted)


def test_the_batch_shrinks_when_half_has_ended(
    asked: Pipeline, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[int]] = []
    for kind in (GrowingBatch, InPlaceBatch):
        keep = kind.keep
        monkeypatch.setattr(kind, "keep", lambda s, rows, keep=keep: (kept.append(list(rows)), keep(s, rows)))
    context = asked.bundle.manifest.language_model.context
    room = 30
    filler = "circle " * (context - asked.ask(*pairs[0], max_tokens=1).prompt_tokens - room)
    # Four sequences reach the end of the context one after the other, the last one goes on.
    longer = [(image, filler + "circle " * 5 * i) for i, (image, _) in enumerate(pairs[:4])] + pairs[4:]
    options = {"max_tokens": 60, "ignore_eos": True}
    wanted = alone(asked, longer, **options)
    assert [answer.finish_reason for answer in wanted] == [*["context"] * 4, "length"]
    same(asked.ask_batch(longer, **options), wanted)
    assert kept == [[0, 4], [1]]


def test_an_image_is_seen_once_and_a_few_at_a_time(
    asked: Pipeline, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = OnnxRuntimeBackend.encode
    monkeypatch.setattr(
        OnnxRuntimeBackend,
        "encode",
        lambda s, pixels, *p: (seen.append(len(pixels)), encode(s, pixels, *p))[1],
    )
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 3)
    asked.ask_batch(pairs, max_tokens=2)
    assert seen == [3, 1]


def test_one_question_and_none(asked: Pipeline, pairs: list) -> None:
    same(asked.ask_batch(pairs[:1], max_tokens=6), alone(asked, pairs[:1], max_tokens=6))
    assert asked.ask_batch([]) == []


def test_unpruned(asked: Pipeline, pairs: list) -> None:
    other = asked.with_selector("none")
    same(other.ask_batch(pairs[:2], max_tokens=6), alone(other, pairs[:2], max_tokens=6))


def test_chunks_are_for_the_dialect_that_takes_them(asked: Pipeline, pairs: list) -> None:
    options = {"max_tokens": 8, "prefill_chunk": 9}
    if asked.bundle.manifest.language_model.dialect == "portable":
        same(asked.ask_batch(pairs, **options), alone(asked, pairs, **options))
    else:
        with refused("batch-with-dialect", "onnxruntime"):
            asked.ask_batch(pairs, **options)


def test_a_cache_in_place_takes_no_rows_of_another(fused_bundle: Path) -> None:
    backend = Pipeline(fused_bundle, threads=1)._backend
    vision = Pipeline(fused_bundle, threads=1).bundle.manifest.vision_encoder
    visual = backend.to_device(np.zeros((2, 58, vision.width), np.float32))
    one = backend.language(backend.to_device(np.zeros((1, 58, vision.width), np.float32)))
    one.extend([5, 6, 7])
    with refused("batch-with-dialect", "prefill_chunk"):
        backend.language_batch(visual, one.rows(3))
    batch = backend.language_batch(visual)
    batch.extend([[5, 6], [5]])
    with refused("batch-with-dialect"):
        batch.extend([[5, 6], [5]])


def test_what_comes_before_the_image_is_computed_once(
    demo_bundle: Path, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(demo_bundle, threads=1)
    widths: list[int] = []
    extend = GrowingBatch.extend
    monkeypatch.setattr(
        GrowingBatch,
        "extend",
        lambda s, ids, chunk=None: (widths.append(max(map(len, ids))), extend(s, ids, chunk))[1],
    )
    for _ in range(2):
        found = pipeline.ask_batch(pairs, max_tokens=1)
    longest = max(answer.prompt_tokens for answer in found)
    before = widths[0]
    assert 0 < before < longest
    assert widths == [before, longest - before, longest - before]


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_a_cache_of_fixed_size_takes_one_sequence(demo_bundle: Path, pairs: list, dialect: str) -> None:
    pipeline = Pipeline(demo_bundle, threads=1)
    manifest = pipeline.bundle.manifest
    language = manifest.language_model.model_copy(update={"dialect": dialect})
    changed = type(pipeline.bundle)(
        pipeline.bundle.path, manifest.model_copy(update={"language_model": language})
    )
    pipeline._backend = OnnxRuntimeBackend(changed, "cpu", 1)
    with refused("batch-with-dialect", dialect):
        pipeline.ask_batch(pairs)


def test_a_backend_without_batches_is_refused(demo_bundle: Path, pairs: list) -> None:
    class Single:
        name = "tensorrt"

    pipeline = Pipeline(demo_bundle, threads=1)
    pipeline._backend = Single()  # type: ignore[assignment]
    with refused("batch-with-backend", "tensorrt"):
        pipeline.ask_batch(pairs)


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
    assert read_questions(tmp_path / "q.jsonl") == [line, line]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nothing", ("questions-invalid", "line 1", "JSON")),
        ("[]", ("questions-invalid", "line 1", "image and question")),
        ('{"image": "a.png"}', ("questions-invalid", "line 1", "'question'")),
        ('{"image": "a.png", "question": "what?"}', ("image-missing", "line 1", "a.png")),
        ("", ("questions-empty", "q.jsonl")),
    ],
)
def test_a_file_of_questions_is_checked_before_anything_is_loaded(
    line: str, told: tuple[str, ...], tmp_path: Path, command: Callable[..., Any]
) -> None:
    (tmp_path / "q.jsonl").write_text(line + "\n")
    outcome = command("batch", tmp_path / "no-bundle", tmp_path / "q.jsonl")
    assert_told(outcome.code, outcome.err, *told)
    size = command("batch", tmp_path, tmp_path / "q.jsonl", "--size", 0)
    assert_told(size.code, size.err, "count-out-of-range", 0)
    missing = command("batch", tmp_path, tmp_path / "none.jsonl")
    assert_told(missing.code, missing.err, "questions-missing", "none.jsonl")
