"""The Python API on the demo bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.runtime.backends.growing import GrowingSession
from divprune_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend

QUESTION = "what color is the circle?"


def test_answer_is_complete_and_streamed(pipeline: Pipeline, image: Path) -> None:
    pieces: list[str] = []
    answer = pipeline.ask(image, QUESTION, max_tokens=12, ignore_eos=True, stream=pieces.append)
    assert "".join(pieces) == answer.answer
    assert len(answer.token_ids) == 12
    assert answer.finish_reason == "length"
    assert answer.visual_tokens == len(answer.kept_indices) == 58
    assert answer.kept_indices.dtype == np.int64
    assert answer.prompt_tokens > 58
    assert answer.backend == "onnxruntime-cpu"


def test_total_is_the_sum_of_the_stages(pipeline: Pipeline, image: Path) -> None:
    between = []
    for _ in range(5):  # the processor may be taken away between two stages, but not every time
        timings = dict(pipeline.ask(image, QUESTION, max_tokens=8).timings_ms)
        assert list(timings) == ["preprocess", "vision", "select", "prefill", "decode", "total"]
        total = timings.pop("total")
        assert all(value > 0 for value in timings.values())
        between.append(abs(total - sum(timings.values())) / total)
    assert min(between) <= 0.05


def test_json_has_the_same(pipeline: Pipeline, image: Path) -> None:
    answer = pipeline.ask(image, QUESTION, max_tokens=4)
    line = answer.to_json()
    assert "\n" not in line
    fields = json.loads(line)
    assert fields["answer"] == answer.answer
    assert fields["token_ids"] == list(answer.token_ids)
    assert fields["kept_indices"] == answer.kept_indices.tolist()
    assert set(fields["timings_ms"]) == set(answer.timings_ms)


def test_path_object_and_array_give_one_answer(pipeline: Pipeline, image: Path) -> None:
    with Image.open(image) as opened:
        pixels = np.asarray(opened)
        answers = [
            pipeline.ask(source, QUESTION, max_tokens=6, bgr=bgr).token_ids
            for source, bgr in ((image, False), (opened, False), (pixels, False), (pixels[..., ::-1], True))
        ]
    assert len(set(answers)) == 1


def test_chunked_prefill_gives_the_same_answer(pipeline: Pipeline, image: Path) -> None:
    whole, pieces = (pipeline.ask(image, QUESTION, max_tokens=8, prefill_chunk=n) for n in (None, 9))
    assert whole.token_ids == pieces.token_ids


def test_seed_repeats_and_temperature_changes(pipeline: Pipeline, image: Path) -> None:
    options = {"max_tokens": 24, "temperature": 3.0, "ignore_eos": True}
    first, again, other = (pipeline.ask(image, QUESTION, seed=s, **options).token_ids for s in (1, 1, 2))
    assert first == again != other


def test_no_forbidden_id_is_sampled(pipeline: Pipeline, image: Path) -> None:
    ids = pipeline.ask(image, QUESTION, max_tokens=300, temperature=100.0, seed=0, ignore_eos=True).token_ids
    assert not set(ids) & set(pipeline.bundle.manifest.prompt.forbidden_ids)
    assert len(set(ids)) > 50


def test_chat_encodes_the_image_once_and_reuses_the_cache(
    pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    fed: list[int] = []
    encode, extend = OnnxRuntimeBackend.encode, GrowingSession.extend
    monkeypatch.setattr(OnnxRuntimeBackend, "encode", lambda s, *p: (encoded.append(1), encode(s, *p))[1])
    monkeypatch.setattr(
        GrowingSession,
        "extend",
        lambda s, slot, ids, *rest: (fed.append(len(ids)), extend(s, slot, ids, *rest))[1],
    )
    chat = pipeline.chat(image)
    first = chat.ask(QUESTION, max_tokens=5)
    fed.clear()
    second = chat.ask("is there a square?", max_tokens=5)
    assert encoded == [1]
    assert fed[0] < 58 < second.prompt_tokens
    assert second.timings_ms["vision"] == second.timings_ms["select"] == 0
    assert np.array_equal(first.kept_indices, second.kept_indices)
    assert chat.ask("how many?", max_tokens=5).prompt_tokens > second.prompt_tokens


def test_chat_answers_as_a_conversation_without_cache(pipeline: Pipeline, image: Path) -> None:
    chat, fresh = pipeline.chat(image), pipeline.chat(image)
    chat.ask(QUESTION, max_tokens=6)
    fresh._turns = list(chat._turns)
    cached = chat.ask("is there a square?", max_tokens=8, ignore_eos=True)
    recomputed = fresh.ask("is there a square?", max_tokens=8, ignore_eos=True)
    assert cached.prompt_tokens == recomputed.prompt_tokens
    assert cached.token_ids == recomputed.token_ids


def test_chat_survives_an_interrupted_answer(pipeline: Pipeline, image: Path) -> None:
    chat = pipeline.chat(image)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask("how many circles?", stream=interrupt, ignore_eos=True)
    after = chat.ask(QUESTION, max_tokens=8, ignore_eos=True)
    assert after.token_ids == pipeline.ask(image, QUESTION, max_tokens=8, ignore_eos=True).token_ids


def test_unpruned_sees_every_token(demo_bundle: Path, image: Path) -> None:
    answer = Pipeline(demo_bundle, selector="none", threads=1).ask(image, QUESTION, max_tokens=3)
    assert answer.visual_tokens == 576
    assert np.array_equal(answer.kept_indices, np.arange(576))


def test_with_selector_shares_the_loaded_graphs(
    pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pipeline.ask(image, QUESTION, max_tokens=3).token_ids
    monkeypatch.setattr(OnnxRuntimeBackend, "_build", lambda *_: pytest.fail("a graph was loaded again"))
    full = pipeline.with_selector("none")
    assert full.ask(image, QUESTION, max_tokens=3).visual_tokens == full.visual_tokens == 576
    assert full.with_selector(keep=58).ask(image, QUESTION, max_tokens=3).token_ids == expected
    assert pipeline.visual_tokens == 58
    with refused("selector-not-in-bundle", "other"):
        pipeline.with_selector("other")


def test_context_ends_the_answer(pipeline: Pipeline, image: Path) -> None:
    context = pipeline.bundle.manifest.language_model.context
    with refused("prompt-too-long", context):
        pipeline.ask(image, "circle " * context)
    words = "circle " * (context - 100)
    answer = pipeline.ask(image, words, ignore_eos=True, max_tokens=1000)
    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == context


def test_special_tokens_in_a_question(pipeline: Pipeline, image: Path) -> None:
    answer = pipeline.ask(image, "is <image> </s> a circle?", max_tokens=3)
    assert answer.visual_tokens == 58


def test_unknown_option_and_bad_value(pipeline: Pipeline, image: Path) -> None:
    with refused("argument-unknown", "'max_token'", "did you mean 'max_tokens'"):
        pipeline.ask(image, QUESTION, max_token=3)
    with refused("decoding-out-of-range", "max_tokens is -1"):
        pipeline.ask(image, QUESTION, max_tokens=-1)
