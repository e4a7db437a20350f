"""Several images in a prompt, and none: against transformers, in conversations, batches and the command line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import agree
from checkpoints import make_checkpoint
from exporting import export, plan_of
from fake_device import FakeEngines
from images_made import noise_image
from over_fake import over_fake
from PIL import Image
from raising import assert_told, refused

from divprune_edge import Pipeline
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.chat import Chat

QUESTION = "what color is the circle?"
LATER = "is it left of the square?"
STEPS = 8
OPTIONS = {"max_tokens": STEPS, "ignore_eos": True}

Oracle = Callable[..., tuple[list[int], list[float]]]


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    return noise_image(12, 9, seed).resize(size, Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(1, (61, 150)), picture(2, (333, 200)), picture(3, (96, 96))]


@pytest.fixture(scope="module")
def whole(demo_bundle: Path) -> Pipeline:
    """The demo bundle, unpruned."""
    return Pipeline(demo_bundle, "none")


@pytest.fixture(scope="module")
def reference() -> tuple[Any, Any, Any]:
    """Torch, and transformers' own processor and model in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return torch, transformers.LlavaProcessor.from_pretrained(CHECKPOINT), model


@pytest.fixture(scope="module")
def processed(reference: tuple[Any, Any, Any]) -> Callable[..., Any]:
    """``turns of (text, images) -> what transformers' processor makes of the conversation``, the answers in between."""
    _, processor, _ = reference

    def process(*turns: tuple[str, Sequence[Image.Image]]) -> Any:
        messages = [
            {
                "role": "assistant" if at % 2 else "user",
                "content": [*[{"type": "image"}] * len(images), {"type": "text", "text": text}],
            }
            for at, (text, images) in enumerate(turns)
        ]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = [image for _, of_turn in turns for image in of_turn]
        return processor(text=text, images=images or None, return_tensors="pt")

    return process


@pytest.fixture(scope="module")
def generated(reference: tuple[Any, Any, Any], processed: Callable[..., Any]) -> Oracle:
    """Greedy ids and top-2 margins of transformers' own generate on a conversation, unpruned."""
    torch, _, model = reference

    def generate(*turns: tuple[str, Sequence[Image.Image]]) -> tuple[list[int], list[float]]:
        inputs = processed(*turns)
        made = model.generate(
            **inputs,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            do_sample=False,
            suppress_tokens=[model.config.image_token_id],
            eos_token_id=-1,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return _followed(torch.cat(made.logits), model.config.image_token_id)

    return generate


@pytest.fixture(scope="module")
def spliced(reference: tuple[Any, Any, Any], processed: Callable[..., Any]) -> Oracle:
    """The same with the kept rows of each image put among the embeddings by hand."""
    torch, _, model = reference

    @torch.no_grad()
    def follow(kept: Sequence[np.ndarray], *turns: Any) -> tuple[list[int], list[float]]:
        inputs, place = processed(*turns), model.config.image_token_id
        features = model.get_image_features(
            pixel_values=inputs["pixel_values"], return_dict=True
        ).pooler_output
        ids = inputs["input_ids"][0]
        embed = model.get_input_embeddings()
        parts, image = [], iter(zip(features, kept, strict=True))
        for token, run in _runs(ids.tolist()):
            if token == place:
                for _ in range(run // len(features[0])):  # one image may follow another
                    rows, indices = next(image)
                    parts.append(rows[torch.tensor(indices)])
            else:
                parts.append(embed(torch.tensor([token] * run)))
        rows, past, logits = torch.cat(parts)[None], None, []
        for _ in range(STEPS):
            result = model.model.language_model(inputs_embeds=rows, past_key_values=past, use_cache=True)
            past = result.past_key_values
            logits.append(model.lm_head(result.last_hidden_state[0, -1]))
            logits[-1][place] = -torch.inf
            rows = embed(logits[-1].argmax().reshape(1, 1))
        return _followed(torch.stack(logits), place)

    return follow


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    at = 0
    while at < len(ids):
        end = at
        while end < len(ids) and ids[end] == ids[at]:
            end += 1
        yield ids[at], end - at
        at = end


def _followed(logits: Any, forbidden: int) -> tuple[list[int], list[float]]:
    logits[:, forbidden] = -np.inf
    top = logits.topk(2, dim=-1)
    return top.indices[:, 0].tolist(), (top.values[:, 0] - top.values[:, 1]).tolist()


@pytest.mark.parametrize("count", [0, 2, 3])
def test_unpruned_is_transformers_own_generate(
    whole: Pipeline, pictures: list[Image.Image], processed: Any, generated: Oracle, count: int
) -> None:
    answer = whole.ask(pictures[:count], QUESTION, **OPTIONS)
    assert answer.image_tokens == (576,) * count
    assert answer.visual_tokens == len(answer.kept_indices) == 576 * count
    assert answer.prompt_tokens == processed((QUESTION, pictures[:count]))["input_ids"].shape[1]
    agree(answer.token_ids, *generated((QUESTION, pictures[:count])))


@pytest.mark.parametrize("count", [2, 3])
def test_pruned_is_what_is_spliced_by_hand(
    pipeline: Pipeline, pictures: list[Image.Image], spliced: Oracle, count: int
) -> None:
    answer = pipeline.ask(tuple(pictures[:count]), QUESTION, **OPTIONS)
    assert answer.image_tokens == (58,) * count
    kept = np.split(answer.kept_indices, count)
    alone = [pipeline.ask(image, QUESTION, max_tokens=1).kept_indices for image in pictures[:count]]
    assert all(np.array_equal(a, b) for a, b in zip(kept, alone, strict=True))
    agree(answer.token_ids, *spliced(kept, (QUESTION, pictures[:count])))


def test_images_in_different_turns(
    whole: Pipeline,
    pipeline: Pipeline,
    pictures: list[Image.Image],
    generated: Oracle,
    spliced: Oracle,
) -> None:
    for asked in (whole, pipeline):
        chat = asked.chat(None)
        first = chat.ask("what is there?", max_tokens=4)
        second = chat.ask(QUESTION, image=pictures[:1], max_tokens=4)
        third = chat.ask(LATER, image=pictures[1], **OPTIONS)
        assert (first.image_tokens, len(second.image_tokens), len(third.image_tokens)) == ((), 1, 2)
        turns = [
            ("what is there?", []),
            (first.answer, []),
            (QUESTION, pictures[:1]),
            (second.answer, []),
            (LATER, pictures[1:2]),
        ]
        kept = np.split(third.kept_indices, 2)
        agree(third.token_ids, *(generated(*turns) if asked is whole else spliced(kept, *turns)))


def test_an_image_that_joins_leaves_the_cache_and_is_seen_alone(
    pipeline: Pipeline, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    fed: list[int] = []
    backend = type(pipeline.backend)
    encode = backend.encode
    monkeypatch.setattr(
        backend, "encode", lambda s, p, *r: (seen.append(len(p["pixels"])), encode(s, p, *r))[1]
    )
    chat = pipeline.chat(pictures[0])
    first = chat.ask(QUESTION, max_tokens=4)
    session = type(chat._session)
    extend = session.extend
    monkeypatch.setattr(
        session, "extend", lambda s, slot, ids, *r: (fed.append(len(ids)), extend(s, slot, ids, *r))[1]
    )
    second = chat.ask(LATER, image=pictures[1:], max_tokens=4)
    assert seen == [1, 2]
    assert 2 * 58 < fed[0] < second.prompt_tokens - first.prompt_tokens + 5
    assert second.timings_ms["vision"] > 0
    third = chat.ask(LATER, max_tokens=4)
    assert (seen, third.timings_ms["vision"], third.image_tokens) == ([1, 2], 0, (58, 58, 58))


FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {"text": {"max_position_embeddings": 1024, "head_dim": 16}},
    "llava_onevision": {
        "family": "llava_onevision",
        "text": {"max_position_embeddings": 1024},
        "kind": "qwen2",
        "tower": "siglip_vision_model",
        "llava": {"image_grid_pinpoints": [[70, 70], [35, 70]], "vision_aspect_ratio": "anyres_max_9"},
    },
}
"""The second sees an image that is alone in its prompt otherwise than beside others."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Bundle]:
    """A tiny bundle of a family in a dialect."""
    folder = tmp_path_factory.mktemp("made")

    def make(family: str, dialect: str) -> Bundle:
        path, checkpoint = folder / f"{family}-{dialect}", folder / family
        if not checkpoint.exists():
            make_checkpoint(checkpoint, **FAMILIES[family])
        if not path.exists():
            options = {"capacity": 1024} if DIALECTS[dialect].for_tensorrt else {}
            export(plan_of(checkpoint, keep=7, dialect=dialect, **options), path)
        return Bundle.open(path)

    return make


KINDS = [
    ("llava", "portable", "cpu"),
    ("llava", "onnxruntime", "cpu"),
    ("llava", "static", "cpu"),
    ("llava", "static", "tensorrt"),
    ("llava", "decomposed", "tensorrt"),
    ("llava_onevision", "portable", "cpu"),
    ("llava_onevision", "static", "tensorrt"),
]


@pytest.mark.parametrize(("family", "dialect", "backend"), KINDS, ids=map("-".join, KINDS))
@pytest.mark.parametrize("selector", [None, "none"])
def test_a_conversation_is_its_prompt_whatever_came_before(
    made: Callable[[str, str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
    pictures: list[Image.Image],
    family: str,
    dialect: str,
    backend: str,
    selector: str | None,
) -> None:
    """Images join, ready-made prompts bring their own, answers are interrupted: each answer is that of a new start."""
    bundle = made(family, dialect)
    ours = (
        over_fake(bundle, monkeypatch, images=7)[0] if backend == "tensorrt" else Pipeline(bundle, threads=1)
    )
    ours = ours.with_selector(selector)
    options = {"max_tokens": 5, "ignore_eos": True}
    chance = random.Random(7)
    for _ in range(3):
        chat = ours.chat(pictures[: chance.choice([0, 1, 2])])
        for _ in range(5):
            new = chance.sample(pictures, chance.choice([0, 0, 1]))
            kind = chance.choice(["question", "question", "question", "raw", "interrupted"])
            if kind == "interrupted":
                with pytest.raises(KeyboardInterrupt):
                    chat.ask("how many ?", image=new, stream=_interrupt, **options)
                continue
            before = copy(chat)
            text = "what is in the picture ?"
            if kind == "raw":
                text = f"user : {'<image> and ' * (len(chat._images) + len(new))} what ?"
            found = chat.ask(text, image=new, raw_prompt=kind == "raw", **options)
            again = _fresh(ours, before).ask(text, image=new, raw_prompt=kind == "raw", **options)
            assert found.token_ids == again.token_ids
            assert (found.image_tokens, found.prompt_tokens) == (again.image_tokens, again.prompt_tokens)
            assert np.array_equal(found.kept_indices, again.kept_indices)
        assert len(chat._images) <= 7


def _fresh(pipeline: Pipeline, chat: Chat) -> Chat:
    """Return a conversation with the same turns, of which nothing is cached and nothing was seen."""
    fresh = pipeline.chat(chat._images)
    fresh._turns = list(chat._turns)
    return fresh


def _interrupt(text: str) -> None:
    raise KeyboardInterrupt


def _same(found: Answer, wanted: Answer) -> None:
    assert (found.token_ids, found.answer, found.prompt_tokens) == (
        wanted.token_ids,
        wanted.answer,
        wanted.prompt_tokens,
    )
    assert found.image_tokens == wanted.image_tokens
    assert np.array_equal(found.kept_indices, wanted.kept_indices)


@pytest.mark.parametrize(("family", "dialect", "backend"), KINDS, ids=map("-".join, KINDS))
@pytest.mark.parametrize("selector", [None, "none"])
def test_a_batch_of_questions_about_no_image_one_and_several(
    made: Callable[[str, str], Bundle],
    monkeypatch: pytest.MonkeyPatch,
    pictures: list[Image.Image],
    family: str,
    dialect: str,
    backend: str,
    selector: str | None,
) -> None:
    bundle, first, second = made(family, dialect), *pictures[:2]
    ours = (
        over_fake(bundle, monkeypatch, images=2, slots=8)[0]
        if backend == "tensorrt"
        else Pipeline(bundle, threads=1)
    ).with_selector(selector)
    pairs: list[Any] = [
        (None, "how many ?"),
        (first, "what is in the picture ?"),
        ([first, second], "what colour is the circle ?"),
        ([second, first], "which number ?"),
        ([], "is there a square ?"),
        ((second,), "is it red or green ?"),
        ([first, first], "which colour ?"),
    ]
    options = {"max_tokens": 6, "ignore_eos": True}
    found = ours.ask_batch(pairs, **options)
    for answer, (image, question) in zip(found, pairs, strict=True):
        _same(answer, ours.ask(image, question, **options))
    for answer in ours.ask_batch([pairs[0], pairs[4]], **options):
        assert (answer.image_tokens, answer.visual_tokens, answer.kept_indices.shape) == ((), 0, (0,))


def test_engines_for_one_image_take_no_second(
    made: Callable[[str, str], Bundle], monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image]
) -> None:
    """It is told with both numbers, and the conversation goes on as it was."""
    bundle = made("llava", "static")
    ours, wanted = over_fake(bundle, monkeypatch, selectors=["divprune-7"], images=2)[0], Pipeline(bundle)
    with refused("engine-images", 21, 14, "--images 2", "--images 3"):
        ours.ask(pictures, "what ?")
    chat, other = ours.chat(pictures[:2]), wanted.chat(pictures[:2])
    for question in ("how many ?", "which colour ?"):
        _same(chat.ask(question, max_tokens=4), other.ask(question, max_tokens=4))
        for _ in range(2):
            with refused("engine-images", 21, 14):
                chat.ask("what ?", image=pictures[2])


def test_engines_from_before_take_one_image_and_no_text_alone(
    made: Callable[[str, str], Bundle], monkeypatch: pytest.MonkeyPatch, pictures: list[Image.Image]
) -> None:
    bundle = made("llava", "static")
    limits = FakeEngines(bundle, selectors=["divprune-7"]).limits.model_copy(update={"kept": (7, 7, 7)})
    with monkeypatch.context() as patch:
        patch.setattr("fake_device.make_limits", lambda *_: limits)
        ours = over_fake(bundle, monkeypatch)[0]
    _same(ours.ask(pictures[0], "what ?"), Pipeline(bundle).ask(pictures[0], "what ?"))
    with refused("engine-images", 7, "--force"):
        ours.ask(None, "what ?")


def test_a_prompt_for_which_there_is_no_room(whole: Pipeline, pictures: list[Image.Image]) -> None:
    with refused("prompt-too-long", 2304, 2048, "about fewer images"):
        whole.ask([*pictures, pictures[0]], QUESTION)
    with refused("prompt-too-long", 0, 2048) as caught:
        whole.ask(None, "circle " * 3000)
    assert str(caught.value).endswith(": ask a shorter question.")


def test_none_are_asked_about_where_none_are_given(pipeline: Pipeline) -> None:
    found = {pipeline.ask(image, QUESTION, **OPTIONS).token_ids for image in (None, [], ())}
    assert len(found) == 1
    assert pipeline.ask(None, f"USER: {QUESTION} ASSISTANT:", raw_prompt=True, **OPTIONS).token_ids in found


def test_the_rows_before_the_first_image_are_those_of_every_conversation(
    pipeline: Pipeline, pictures: list[Image.Image]
) -> None:
    """Not those of a conversation that one joined later, and none where there is no image."""
    pipeline = copy(pipeline)
    pipeline._prefix = {}
    chat = pipeline.chat(None)
    chat.ask(QUESTION, max_tokens=2)
    chat.ask(QUESTION, image=pictures[0], max_tokens=2)
    assert pipeline._prefix == {}
    pipeline.ask(pictures, QUESTION, max_tokens=2)
    (before,) = pipeline._prefix
    rows = pipeline._prefix[before]
    _same(
        pipeline.ask(pictures[:2], QUESTION, **OPTIONS),
        pipeline.ask_batch([(pictures[:2], QUESTION)], **OPTIONS)[0],
    )
    assert pipeline._prefix[before] is rows
    assert all(token < pipeline.bundle.manifest.language_model.embedding_rows for token in before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, pictures: list[Image.Image]) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    for at, image in enumerate(pictures):
        image.save(folder / f"{at} a.png")
    return [folder / f"{at} a.png" for at in range(len(pictures))]


def test_the_command_line_takes_several_and_none(
    command: Callable[..., Any], pipeline: Pipeline, demo_bundle: Path, files: list[Path], tmp_path: Path
) -> None:
    ask = ["ask", demo_bundle, "--json", "--max-tokens", 4]
    for images in (files[:2], []):
        given = [part for file in images for part in ("--image", file)]
        done = command(*ask, *given, QUESTION)
        assert (done.code, done.err) == (0, "")
        fields = json.loads(done.out)
        wanted = pipeline.ask(images, QUESTION, max_tokens=4)
        assert fields["token_ids"] == list(wanted.token_ids)
        assert fields["image_tokens"] == [58] * len(images)
        assert len(fields["kept_indices"]) == fields["visual_tokens"] == 58 * len(images)
        kept = command(*ask, *given, QUESTION, "--show-kept", tmp_path / "kept.png")
        assert_told(kept.code, kept.err, "show-kept-images", "--show-kept", len(images))


@pytest.mark.parametrize("stdin", [False, True])
def test_images_join_a_conversation_on_the_command_line(
    command: Callable[..., Any], pipeline: Pipeline, demo_bundle: Path, files: list[Path], stdin: bool
) -> None:
    lines = [f"/image {files[0]}", QUESTION, LATER, f"/image {files[1]}", f"/image  {files[2]}", QUESTION]
    ask = ["ask", demo_bundle, "--chat", "--json", "--max-tokens", 4]
    done = command(*ask, stdin="\n".join(lines)) if stdin else command(*ask, *lines)
    chat = pipeline.chat(None)
    wanted = [
        chat.ask(QUESTION, image=files[0], max_tokens=4),
        chat.ask(LATER, max_tokens=4),
        chat.ask(QUESTION, image=files[1:], max_tokens=4),
    ]
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [one["token_ids"] for one in found] == [list(answer.token_ids) for answer in wanted]
    assert [len(one["image_tokens"]) for one in found] == [1, 1, 3]
    for wrong in ([QUESTION, "/image"], [QUESTION, f"/image {files[0]}"]):
        failed = command(*ask, *wrong)
        assert_told(failed.code, failed.err, "chat-image", "/image")
    missing = command(*ask, "/image nowhere.png", QUESTION)
    assert_told(missing.code, missing.err, "image-missing", "nowhere.png")


def test_a_file_of_questions_about_any_number_of_images(
    command: Callable[..., Any], pipeline: Pipeline, demo_bundle: Path, files: list[Path]
) -> None:
    names = [file.name for file in files]
    lines: list[dict[str, Any]] = [
        {"image": names[0]},
        {"image": names[:2]},
        {"images": names[1:]},
        {"image": None},
        {"images": []},
        {},
    ]
    images = [files[:1], files[:2], files[1:], [], [], []]
    bad: list[dict[str, Any]] = [{"image": 5}, {"images": [names[0], " "]}, {"image": names[0], "images": []}]
    file = files[0].parent / "q.jsonl"
    file.write_text("\n".join(json.dumps({**line, "question": QUESTION}) for line in [*lines, *bad]))
    done = command("batch", demo_bundle, file, "--max-tokens", 4)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1
    for answer, line, paths in zip(found, lines, images, strict=False):
        assert {name: answer[name] for name in line} == line
        wanted = pipeline.ask(paths, QUESTION, max_tokens=4)
        assert (answer["token_ids"], answer["image_tokens"]) == (list(wanted.token_ids), [58] * len(paths))
    assert [answer.get("code") for answer in found[len(lines) :]] == ["questions-invalid"] * len(bad)
