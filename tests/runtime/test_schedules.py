"""Pruning inside the language model: what stays and what is answered, against PyTorch that takes tokens out eagerly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import agree
from checkpoints import NEXT, make_checkpoint
from eager_schedules import EAGER, Pruned, embed, open_text_model, run
from exporting import Bundle, export, failures, plan_of
from images_made import noise_image
from over_fake import over_fake
from PIL import Image
from qwen_checkpoints import QWEN, SHAPES, images_of, make_qwen_checkpoint
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo
from divprune_edge.models.cost import DecoderFlops
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.schedules import Cut
from divprune_edge.models.tensorrt import TENSORRT_RTX
from divprune_edge.runtime.batch import ask_each
from divprune_edge.runtime.bundle import Bundle as RuntimeBundle
from divprune_edge.runtime.defaults import decoding_of
from divprune_edge.runtime.lab.profiling.roofline import DECODE, costs

LAYERS, STEPS = 6, 8
QUESTIONS = ("what is in the picture?", "how many red circle are there?")
METHODS = ("pyramiddrop", "fastv", "v2drop", "todre-2", "uniform")
DIALECTS = ("portable", "onnxruntime", "static", "decomposed")

Exported = Callable[..., Bundle]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of six layers, 25 visual tokens, and heads that every dialect takes."""
    text = {"num_hidden_layers": LAYERS, "num_key_value_heads": 2, "head_dim": 16}
    return make_checkpoint(tmp_path_factory.mktemp("six") / "checkpoint", text=text)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return open_text_model(checkpoint)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    @cache
    def get(schedule: str | None, dialect: str = "portable", keep: int = 20, **options: Any) -> Bundle:
        if dialect == "onnxruntime":
            options["numbering"] = "compact"
        plan = plan_of(checkpoint, keep, schedule=schedule, dialect=dialect, precision="fp32", **options)
        return export(plan, tmp_path_factory.mktemp("scheduled") / "bundle")

    return get


def picture(seed: int) -> Image.Image:
    return noise_image(60, 80, seed)


def cuts_of(bundle: Bundle) -> list[tuple[int, int]]:
    schedule = bundle.manifest.language_model.schedule
    assert schedule is not None
    return [(cut.before, cut.keep) for cut in schedule.cuts]


def expected(
    model: Any,
    bundle: Bundle,
    chat: Any,
    ids: Sequence[int],
    images: Sequence[Sequence[int]],
    steps: int = STEPS,
    **options: Any,
) -> Pruned:
    """What transformers' layers do after a prompt's ids, which refer to what a chat has seen."""
    schedule = bundle.manifest.language_model.schedule
    rows, stacked = embed(model, ids, chat._pipeline.backend.to_host(chat._seen.tokens)[0])
    return run(
        model,
        rows,
        images,
        cuts_of(bundle),
        EAGER.get(schedule.method),
        renumber=schedule.numbering == "compact",
        steps=steps,
        forbidden=[*bundle.manifest.prompt.forbidden_ids],
        stacked=stacked,
        **options,
    )


def visual_rows(bundle: Bundle, ids: Sequence[int]) -> np.ndarray:
    return np.flatnonzero(np.array(ids) >= bundle.rows)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("method", METHODS)
def test_what_stays_and_what_follows(exported: Exported, model: Any, method: str, dialect: str) -> None:
    """Of two images in one prompt as well, each of which is judged by itself."""
    bundle = exported(method, dialect)
    pipeline = Pipeline(bundle.folder)
    for images in ([picture(1)], [picture(2), picture(3)]):
        chat = pipeline.chat(images)
        answer = chat.ask(QUESTIONS[0], max_tokens=STEPS, ignore_eos=True)
        ids = chat._cached[: answer.prompt_tokens]
        visual = visual_rows(bundle, ids)
        wanted = expected(model, bundle, chat, ids, np.split(visual, len(images)))
        for found, kept, (before, keep) in zip(
            chat._session.kept(chat._slot), wanted.kept, cuts_of(bundle), strict=True
        ):
            assert visual[found].tolist() == kept
            assert answer.kept_from[before].tolist() == found.tolist()
            assert len(found) == keep * len(images)
        agree(answer.token_ids, wanted.tokens, wanted.margins)
        lengths = chat._session.lengths(chat._slot)
        assert lengths == tuple(
            lengths[0] - len(images) * (20 - keep) for keep in (20, *(k for _, k in cuts_of(bundle)))
        )


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("method", ["pyramiddrop", "fastv"])
def test_several_at_once_are_each_as_alone(exported: Exported, method: str, dialect: str) -> None:
    """In slots of one session, with images, without, and of different lengths."""
    pipeline = Pipeline(exported(method, dialect).folder)
    asked = [(picture(4), QUESTIONS[0]), (None, QUESTIONS[1]), ([picture(5), picture(6)], "how many?")]
    together = pipeline.ask_batch(asked, max_tokens=STEPS, ignore_eos=True)
    for answer, (image, question) in zip(together, asked, strict=True):
        alone = pipeline.ask(image, question, max_tokens=STEPS, ignore_eos=True)
        assert answer.token_ids == alone.token_ids
        for found, wanted in zip(answer.kept_from.values(), alone.kept_from.values(), strict=True):
            assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_slots_join_and_leave(exported: Exported, dialect: str) -> None:
    """What a slot answers does not depend on which others are stepped, wait or have left."""
    bundle = exported("fastv", dialect)
    pipeline = Pipeline(bundle.folder)
    chat = pipeline.chat(picture(7))
    chat.ask(QUESTIONS[0], max_tokens=1)
    tokens, ids = chat._seen.tokens, list(chat._cached[: chat._session.length(chat._slot)])

    def begin(session: Any, count: int) -> tuple[int, list[int]]:
        slot = session.add(tokens)
        return slot, [int(session.extend(slot, ids[: len(ids) - count]).logits.argmax())]

    def alone(count: int, steps: int) -> list[int]:
        session = pipeline.backend.session()
        slot, found = begin(session, count)
        for _ in range(steps - 1):
            found.append(int(session.step({slot: found[-1]})[slot].logits.argmax()))
        return found

    session = pipeline.backend.session(3)
    answers = dict(begin(session, count) for count in (0, 2, 4))

    def step(*slots: int) -> None:
        for slot, prediction in session.step({slot: answers[slot][-1] for slot in slots}).items():
            answers[slot].append(int(prediction.logits.argmax()))

    step(0, 1, 2)
    step(2, 0)
    step(1)
    session.remove(0)
    assert answers.pop(0) == alone(0, 3)
    slot, found = begin(session, 1)
    answers[slot] = found
    step(1, 2)
    step(0, 1, 2)
    assert answers == {0: alone(1, 2), 1: alone(2, 5), 2: alone(4, 5)}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("method", ["pyramiddrop", "fastv"])
def test_a_second_question_finds_the_tokens_gone(
    exported: Exported, model: Any, method: str, dialect: str
) -> None:
    """It is a chunk as any other: the reference keeps what the first question kept, and reads all of it."""
    bundle = exported(method, dialect)
    chat = Pipeline(bundle.folder).chat(picture(8))
    first = chat.ask(QUESTIONS[0], max_tokens=3, ignore_eos=True)
    ids = chat._cached[: first.prompt_tokens]
    visual = visual_rows(bundle, ids)
    kept = expected(model, bundle, chat, ids, [visual], 0).kept
    second = chat.ask(QUESTIONS[1], max_tokens=STEPS, ignore_eos=True)
    ids = chat._cached[: second.prompt_tokens]
    assert second.token_ids[0] == expected(model, bundle, chat, ids, [visual], 1, kept=kept).tokens[0]
    assert len(chat._session.kept(chat._slot)[0]) == cuts_of(bundle)[0][1]


def test_a_later_image_is_cut_as_well(exported: Exported) -> None:
    bundle = exported("fastv")
    chat = Pipeline(bundle.folder).chat(picture(9))
    chat.ask(QUESTIONS[0], max_tokens=2, ignore_eos=True)
    before = chat._session.lengths(chat._slot)
    chat.ask(QUESTIONS[1], image=picture(10), max_tokens=2, ignore_eos=True)
    after = chat._session.lengths(chat._slot)
    assert before[0] - before[1] == 10 and after[0] - after[1] == 20


def test_rows_that_are_given_up_take_a_cut_image_along(exported: Exported) -> None:
    """The rows before it stay; one inside it would leave each group with another rest."""
    bundle = exported("fastv")
    chat = Pipeline(bundle.folder).chat(picture(11))
    chat.ask(QUESTIONS[0], max_tokens=2, ignore_eos=True)
    session, slot = chat._session, chat._slot
    first = int(np.flatnonzero(np.array(chat._cached) >= bundle.rows)[0])
    session.truncate(slot, first + 22)
    assert session.lengths(slot) == (first + 22, first + 12)
    session.truncate(slot, first + 5)
    assert session.lengths(slot) == (first, first)
    assert chat.ask(QUESTIONS[0], max_tokens=2, ignore_eos=True).token_ids
    lengths = session.lengths(slot)
    assert lengths[0] - lengths[1] == 10


@pytest.mark.parametrize("method", ["pyramiddrop", "fastv"])
def test_what_precedes_the_image_is_read_once_where_that_changes_nothing(
    exported: Exported, method: str
) -> None:
    """The method that looks at the next layer has to see the whole prompt."""
    pipeline = Pipeline(exported(method).folder)
    fresh = [
        pipeline.ask(picture(seed), QUESTIONS[0], max_tokens=STEPS, ignore_eos=True) for seed in (12, 13)
    ]
    assert bool(*pipeline._prefix.values()) == (method == "fastv")
    again = Pipeline(exported(method).folder).ask(
        picture(13), QUESTIONS[0], max_tokens=STEPS, ignore_eos=True
    )
    assert again.token_ids == fresh[1].token_ids


def test_no_large_weight_is_stored_twice(exported: Exported) -> None:
    """Whatever the cut; the tables of the rotary embedding are each graph's own."""
    whole = exported(None)

    def weights(bundle: Bundle) -> int:
        import onnx_ir as ir

        total = 0
        for graph in bundle.manifest.language_model.graphs:
            found = ir.load(bundle.folder / graph.file).graph.initializers.values()
            total += sum(one.const_value.nbytes for one in found if not one.name.startswith(("/", "rope.")))
        return total

    for method in METHODS:
        assert weights(exported(method)) == weights(whole)


def test_caches_of_fixed_size_are_smaller_behind_a_cut(exported: Exported) -> None:
    info = exported("pyramiddrop", "static", capacity=100).manifest.language_model
    assert [group.capacity for group in info.groups] == [100, 96, 88, 88]
    cache = {
        tensor.name: tensor.shape[2]
        for graph in info.graphs
        for tensor in graph.inputs
        if tensor.name.startswith("past")
    }
    assert list(cache.values()) == [100] * 4 + [96] * 2 + [88] * 6


def test_an_answer_ends_where_the_smallest_cache_does(exported: Exported) -> None:
    """A prompt without an image fills all caches alike."""
    pipeline = Pipeline(exported("pyramiddrop", "static", capacity=100).folder)
    text = pipeline.ask(None, QUESTIONS[0], max_tokens=200, ignore_eos=True)
    assert text.finish_reason == "context" and text.prompt_tokens + len(text.token_ids) == 88
    seen = pipeline.ask(picture(14), QUESTIONS[0], max_tokens=200, ignore_eos=True)
    assert seen.finish_reason == "context" and seen.prompt_tokens + len(seen.token_ids) == 100
    with refused("sequence-too-long", 88):
        pipeline.ask(None, " ".join(["what"] * 90), max_tokens=2)


def test_an_image_larger_than_the_schedules_fills_the_first_cache(exported: Exported) -> None:
    """All of its tokens enter where nothing prunes before, more than the schedule is made for."""
    bundle = exported("pyramiddrop", "static", keep=12, capacity=80)
    language = bundle.manifest.language_model
    assert [cut.keep for cut in language.schedule.cuts] == [6, 3, 2]
    assert language.group_tokens(35, [25]) == (35, 16, 13, 12)
    assert language.group_tokens(20, [4]) == (20, 20, 19, 18)
    pipeline = Pipeline(bundle.folder, "none")
    long = pipeline.ask(picture(14), QUESTIONS[0], max_tokens=200, ignore_eos=True)
    assert long.visual_tokens == 25 and long.finish_reason == "context"
    assert long.prompt_tokens + len(long.token_ids) == 80


def test_one_without_room_fails_alone(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an answer was promised: those beside it are as they are alone."""
    pipeline = Pipeline(exported("pyramiddrop", "static", capacity=100).folder)
    asked = [(picture(14), QUESTIONS[0]), (None, "what?"), (picture(15), " ".join(["what"] * 20))]
    options = decoding_of(pipeline.bundle.manifest.prompt, {"max_tokens": 60, "ignore_eos": True})
    wanted = [pipeline.ask(*one, max_tokens=60, ignore_eos=True) for one in asked[:2]]
    monkeypatch.setattr(LanguageInfo, "room_for_answer", lambda *given: 1000)
    *found, failed = ask_each(pipeline, asked, options)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    assert isinstance(failed, UserError) and failed.code == "sequence-too-long"
    with refused("sequence-too-long", 3, 100):
        pipeline.ask_batch(asked, max_tokens=60, ignore_eos=True)


def test_the_graph_says_the_next_id(exported: Exported) -> None:
    plain, greedy = exported("fastv"), exported("fastv", greedy=True)
    assert greedy.manifest.language_model.says_next and not plain.manifest.language_model.says_next
    asked = [Pipeline(one.folder).ask(picture(15), QUESTIONS[0], max_tokens=STEPS) for one in (plain, greedy)]
    assert asked[0].token_ids == asked[1].token_ids


def test_a_prompt_with_an_image_is_one_piece(exported: Exported) -> None:
    pipeline = Pipeline(exported("fastv").folder)
    with refused("schedule-chunk", 5):
        pipeline.ask(picture(16), QUESTIONS[0], prefill_chunk=5)
    whole = pipeline.ask(None, QUESTIONS[0], max_tokens=STEPS, ignore_eos=True)
    assert (
        pipeline.ask(None, QUESTIONS[0], max_tokens=STEPS, ignore_eos=True, prefill_chunk=2).token_ids
        == whole.token_ids
    )


def test_an_image_of_few_tokens_stays_whole(exported: Exported) -> None:
    """A cut leaves so many of each image, or all of one that has no more: asked with another selector's budget."""
    from divprune_edge.export.add_selector import add_selector

    bundle = exported("uniform", keep=19)
    add_selector(bundle.folder, "divprune", keep=4, prune=None, force=False, verify=False)
    chat = Pipeline(bundle.folder, keep=4).chat(picture(17))
    chat.ask(QUESTIONS[0], max_tokens=2, ignore_eos=True)
    assert [len(kept) for kept in chat._session.kept(chat._slot)] == [4, 4, 2]


def test_all_tokens_enter_where_no_budget_is_given(checkpoint: Path) -> None:
    """Published counts are of all of them; `export cost` and `export fit` count the same."""
    assert plan_of(checkpoint, None, schedule="pyramiddrop").visual_tokens == 25
    assert plan_of(checkpoint, None, prune="0.9", schedule="fastv").visual_tokens == 2
    assert plan_of(checkpoint, None).visual_tokens == 2
    none = plan_of(checkpoint, None, schedule="none")
    assert none.visual_tokens == 2 and none.schedule is None
    assert plan_of(CHECKPOINT, None, schedule="fastv", encoder_cut="2:144").visual_tokens == 144


@pytest.mark.parametrize(("keep", "default"), [(None, "none"), (20, "divprune-20")])
def test_no_selector_runs_where_all_tokens_enter(exported: Exported, keep: int | None, default: str) -> None:
    bundle = exported("fastv", keep=keep)
    assert bundle.manifest.default_selector == default
    pipeline = Pipeline(bundle.folder)
    answer = pipeline.ask(picture(32), QUESTIONS[0], max_tokens=2)
    assert answer.visual_tokens == (keep or 25) and len(answer.kept_from[2]) == round((keep or 25) / 2)
    assert pipeline.selector is None if keep is None else pipeline.selector.id == default


@pytest.mark.parametrize(
    ("asked", "code", "named"),
    [
        ("pyramiddrob", "schedule-unknown", "pyramiddrop"),
        ({"method": "fastv", "cuts": [{"before": 2, "keep": 20}]}, "schedule-keep", 20),
        ({"method": "fastv", "cuts": [{"before": 0, "keep": 2}]}, "schedule-layer", 0),
        ({"method": "fastv", "cuts": [{"before": 6, "keep": 2}]}, "schedule-layer", 6),
        (
            {"method": "fastv", "cuts": [{"before": 3, "keep": 9}, {"before": 3, "keep": 2}]},
            "schedule-layer",
            3,
        ),
        ({"method": "fastv", "cuts": []}, "schedule-without-cuts", "fastv"),
        ({"method": "fastv", "cuts": [{"before": 2, "share": 1.5}]}, "schedule-invalid", "share"),
        ({"method": "fastv", "cuts": [{"before": 2}]}, "schedule-invalid", "before"),
        ({"method": "fastv", "cuts": [{"before": True, "keep": 3}]}, "schedule-invalid", "before"),
        ({"method": "fastv", "cuts": [{"before": 2, "keep": 3}], "cut": 1}, "schedule-invalid", "cut"),
        ({"method": "fastv", "numbering": "anew", "cuts": []}, "schedule-invalid", "anew"),
        ({"method": "todre-2", "cuts": [{"before": 2, "keep": 10}]}, "schedule-keep", 10),
        ({"method": "fastv", "since": 0, "cuts": [{"before": 2, "keep": 3}]}, "schedule-invalid", "since"),
        ({"method": "spatten", "since": 2, "cuts": [{"before": 2, "keep": 3}]}, "schedule-layer", 2),
        ({"method": "transprune", "since": 3, "cuts": [{"before": 2, "keep": 3}]}, "schedule-layer", 3),
        ({"cuts": []}, "schedule-invalid", "method"),
        ([], "schedule-invalid", "method"),
        ({"method": "fastv", "visual_tokens": 576, "cuts": []}, "schedule-visual-tokens", 576),
    ],
)
def test_what_is_no_schedule(checkpoint: Path, tmp_path: Path, asked: Any, code: str, named: object) -> None:
    if not isinstance(asked, str):
        (tmp_path / "schedule.json").write_text(json.dumps(asked))
        asked = str(tmp_path / "schedule.json")
    with refused(code, named):
        plan_of(checkpoint, 20, schedule=asked)


def test_a_schedule_of_ones_own(checkpoint: Path, tmp_path: Path, model: Any) -> None:
    """Numbers or shares, and at another layer; what the file leaves open is as the method has it."""
    file = tmp_path / "schedule.json"
    file.write_text(
        '{"method": "v2drop", "visual_tokens": 20, "numbering": "compact", '
        '"cuts": [{"before": 2, "share": 0.6}, {"before": 5, "keep": 0}]}'
    )
    bundle = export(plan_of(checkpoint, 20, schedule=str(file)), tmp_path / "bundle")
    assert cuts_of(bundle) == [(2, 12), (5, 0)]
    chat = Pipeline(bundle.folder).chat(picture(18))
    answer = chat.ask(QUESTIONS[0], max_tokens=STEPS, ignore_eos=True)
    ids = chat._cached[: answer.prompt_tokens]
    visual = visual_rows(bundle, ids)
    wanted = expected(model, bundle, chat, ids, [visual])
    assert visual[chat._session.kept(chat._slot)[0]].tolist() == wanted.kept[0]
    assert not wanted.kept[1]
    agree(answer.token_ids, wanted.tokens, wanted.margins)


def test_what_a_dialect_cannot_place(checkpoint: Path) -> None:
    with refused("dialect-positions", "fastv", "onnxruntime"):
        plan_of(checkpoint, 20, schedule="fastv", dialect="onnxruntime")


@pytest.mark.parametrize("dialect", ["portable", "onnxruntime", "static"])
@pytest.mark.parametrize("method", ["pyramiddrop", "fastv"])
@pytest.mark.parametrize("family", QWEN)
def test_three_positions_a_token(
    family: str, method: str, dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they stay, and where each group counts anew; features of the tower are behind the first layers alone."""
    text = {"max_position_embeddings": 512, "num_hidden_layers": LAYERS}
    folder = make_qwen_checkpoint(tmp_path / "tiny", family=family, text=text)
    bundle = export(
        plan_of(folder, 16, schedule=method, dialect=dialect, precision="fp32"), tmp_path / "bundle"
    )
    pipeline = Pipeline(bundle.folder)
    placed: list[Any] = []
    place = pipeline.prompts.place
    monkeypatch.setattr(pipeline.prompts, "place", lambda *told: placed.append(place(*told)) or placed[-1])
    chat = pipeline.chat(images_of([SHAPES[0]])[0])
    answer = chat.ask("what is in the picture ?", max_tokens=STEPS, ignore_eos=True)
    ids, visual = placed[0].ids, visual_rows(bundle, placed[0].ids)
    assert len(visual) == 16
    told = {"positions": placed[0].positions, "next_position": placed[0].next_position}
    wanted = expected(open_text_model(folder), bundle, chat, ids, [visual], **told)
    assert [visual[one].tolist() for one in chat._session.kept(chat._slot)] == wanted.kept
    agree(answer.token_ids, wanted.tokens, wanted.margins)


def test_no_cut_among_features_of_the_tower(tmp_path: Path) -> None:
    folder = make_qwen_checkpoint(tmp_path / "tiny", family="qwen3_vl", text={"num_hidden_layers": LAYERS})
    (tmp_path / "early.json").write_text('{"method": "fastv", "cuts": [{"before": 1, "keep": 4}]}')
    with refused("schedule-layer", 1, 2) as told:
        plan_of(folder, 16, schedule=str(tmp_path / "early.json"))
    (tmp_path / "later.json").write_text(re.search(r"\{.*\}", str(told.value)).group())
    assert plan_of(folder, 16, schedule=str(tmp_path / "later.json")).schedule.cuts == (Cut(2, 4),)


def test_images_of_different_numbers_of_tokens(tmp_path: Path) -> None:
    """Of tiles: the cut leaves so many of a large image, and a small one whole; each is judged by itself."""
    text = {"num_hidden_layers": LAYERS, "max_position_embeddings": 1024}
    folder = make_checkpoint(tmp_path / "tiles", **{**NEXT, "text": text})
    (tmp_path / "own.json").write_text('{"method": "fastv", "cuts": [{"before": 3, "keep": 60}]}')
    bundle = export(
        plan_of(folder, None, prune="0", schedule=str(tmp_path / "own.json")), tmp_path / "bundle"
    )
    chat = Pipeline(bundle.folder).chat([Image.new("RGB", (35, 35)), picture(19)])
    answer = chat.ask(QUESTIONS[0], max_tokens=STEPS, ignore_eos=True)
    small, large = answer.image_tokens
    assert small <= 60 < large
    ids = chat._cached[: answer.prompt_tokens]
    visual = visual_rows(bundle, ids)
    found = chat._session.kept(chat._slot)[0]
    assert len(found) == small + 60 and found[:small].tolist() == list(range(small))
    wanted = expected(open_text_model(folder), bundle, chat, ids, [visual[:small], visual[small:]])
    assert visual[found].tolist() == wanted.kept[0]
    agree(answer.token_ids, wanted.tokens, wanted.margins)


@pytest.mark.parametrize(
    ("method", "dialect"),
    [
        *((method, dialect) for method in ("pyramiddrop", "fastv") for dialect in ("static", "decomposed")),
        ("v2drop", "static"),
        ("todre-2", "static"),
    ],
)
def test_over_a_device_it_is_the_same(
    exported: Exported, method: str, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TensorRT backend over a stand-in for the device: what stays, answers, slots, a second question."""
    bundle = exported(method, dialect)
    ours, device = over_fake(
        RuntimeBundle.open(bundle.folder), monkeypatch, selectors=["divprune-20"], slots=3, images=2
    )
    theirs = Pipeline(bundle.folder)
    for images in ([picture(21)], [picture(22), picture(23)]):
        chats = [pipeline.chat(images) for pipeline in (ours, theirs)]
        for question in QUESTIONS:
            found, wanted = (chat.ask(question, max_tokens=STEPS, ignore_eos=True) for chat in chats)
            assert found.token_ids == wanted.token_ids
        kept, same = ([one.tolist() for one in chat._session.kept(chat._slot)] for chat in chats)
        assert kept == same
    asked = [(picture(24), QUESTIONS[0]), (None, QUESTIONS[1]), (picture(25), "how many?")]
    together = ours.ask_batch(asked, max_tokens=STEPS, ignore_eos=True)
    for answer, question in zip(together, asked, strict=True):
        assert answer.token_ids == theirs.ask(*question, max_tokens=STEPS, ignore_eos=True).token_ids
    assert device.counts["launches"] > device.counts["captures"] > 0


def test_over_tensorrt_rtx_too(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engines have one profile for both kinds of steps."""
    bundle = exported("fastv", "static")
    edition = {"edition": TENSORRT_RTX}
    ours, _ = over_fake(
        RuntimeBundle.open(bundle.folder), monkeypatch, selectors=["divprune-20"], slots=2, **edition
    )
    asked = [(picture(27), QUESTIONS[0]), (picture(28), QUESTIONS[1])]
    theirs = Pipeline(bundle.folder)
    for answer, question in zip(ours.ask_batch(asked, max_tokens=STEPS), asked, strict=True):
        assert answer.token_ids == theirs.ask(*question, max_tokens=STEPS).token_ids


def test_an_engine_takes_a_prompt_with_an_image_whole(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = RuntimeBundle.open(exported("fastv", "static").folder)
    pipeline, _ = over_fake(bundle, monkeypatch, selectors=["divprune-20"], max_prompt=24)
    with refused("schedule-chunk", 24, "--max-prompt"):
        pipeline.ask(picture(26), QUESTIONS[0])
    assert pipeline.ask(None, " ".join(["what"] * 30), max_tokens=2, ignore_eos=True).token_ids


def test_what_leaves_is_not_counted(exported: Exported) -> None:
    """Of a prompt of 30 tokens, 20 of them visual, 10 to 2 of these are in later layers."""
    bundle = RuntimeBundle.open(exported("pyramiddrop").folder)
    language = bundle.manifest.language_model
    cost = language.cost
    assert cost is not None
    parts = DecoderFlops(cost.token_flops, cost.pair_flops, cost.logits_flops)
    selector = bundle.selector()
    found = costs(bundle, selector, 30, 8)
    layers = [(2, 30), (1, 20), (1, 15), (2, 12)]
    flops = sum(n * (parts.of(tokens, 0) - parts.logits) for n, tokens in layers) / LAYERS
    assert abs(found["prefill"].flops - parts.logits - flops) <= 1
    whole = costs(RuntimeBundle.open(exported(None).folder), selector, 30, 8)
    row = 2 * 2 * 16 * 4  # keys and values, heads, their width, bytes
    assert whole["prefill"].bytes - found["prefill"].bytes == (
        row * sum(n * (30 - tokens) for n, tokens in layers) + cost_difference(exported)
    )
    step = sum(n * (parts.of(1, 34 - (30 - tokens)) - parts.logits) for n, tokens in layers) / LAYERS
    assert abs(found[DECODE].flops - parts.logits - step) <= 1
    for stage in ("prefill", DECODE):
        each = [found.pop(f"{stage}.{i}") for i in range(len(layers))]
        assert sum(one.flops for one in each) == found[stage].flops
        assert sum(one.bytes for one in each) == found[stage].bytes
        per_layer = [one.flops / count for one, (count, _) in zip(each[:-1], layers, strict=False)]
        assert per_layer == sorted(per_layer, reverse=True), "less where fewer are left"
    assert not any(name.endswith((".0", ".1")) for name in found)


def cost_difference(exported: Exported) -> int:
    """Bytes of graphs themselves, of which a chain has more."""
    whole, chain = (
        exported(name).manifest.language_model.cost.weight_bytes for name in (None, "pyramiddrop")
    )
    return int(whole - chain)


@pytest.mark.parametrize("first", [None, 33])
@pytest.mark.parametrize("method", ["pyramiddrop", "fastv"])
def test_an_image_that_joins_is_judged_as_in_one_prompt(
    exported: Exported, model: Any, method: str, first: int | None
) -> None:
    """Behind a question without an image, and behind one with another, of which the method sees as much as it reads."""
    bundle = exported(method)
    chat = Pipeline(bundle.folder).chat(None if first is None else picture(first))
    before = chat.ask(QUESTIONS[1], max_tokens=3, ignore_eos=True)
    answer = chat.ask(QUESTIONS[0], image=picture(34), max_tokens=STEPS, ignore_eos=True)
    ids = chat._cached[: answer.prompt_tokens]
    visual = visual_rows(bundle, ids)
    images = np.split(visual, len(visual) // 20)
    if method == "fastv" and first is not None:  # the first image's are gone by the first question
        assert all((answer.kept_from[2][:10] == before.kept_from[2]).tolist())
        return
    wanted = expected(model, bundle, chat, ids, images)
    assert [visual[kept].tolist() for kept in answer.kept_from.values()] == wanted.kept
    agree(answer.token_ids, wanted.tokens, wanted.margins)


def test_an_answer_says_what_each_cut_left(exported: Exported) -> None:
    """Of all images of the prompt, by their number among those that entered, also of those that join later."""
    bundle = exported("pyramiddrop")
    pipeline = Pipeline(bundle.folder)
    chat = pipeline.chat(picture(30))
    first = chat.ask(QUESTIONS[0], max_tokens=2)
    assert [(layer, len(kept)) for layer, kept in first.kept_from.items()] == cuts_of(bundle)
    assert set(first.kept_from[4]) < set(first.kept_from[3]) < set(first.kept_from[2]) < set(range(20))
    assert json.loads(first.to_json())["kept_from"] == {
        str(layer): kept.tolist() for layer, kept in first.kept_from.items()
    }
    text = pipeline.ask_batch([(None, QUESTIONS[1]), (picture(30), QUESTIONS[0])], max_tokens=2)
    assert [kept.tolist() for kept in text[0].kept_from.values()] == [[], [], []]
    same = [one.kept_from.values() for one in (text[1], first)]
    assert all(np.array_equal(a, b) for a, b in zip(*same, strict=True))
    both = chat.ask(QUESTIONS[1], image=picture(31), max_tokens=2)
    assert both.visual_tokens == 40
    for layer, keep in cuts_of(bundle):
        kept = both.kept_from[layer]
        assert (kept < 20).sum() == (kept >= 20).sum() == keep
    assert Pipeline(exported(None).folder).ask(picture(30), QUESTIONS[0], max_tokens=1).kept_from == {}


def test_a_tied_embedding_is_in_the_first_graph_and_the_last(tmp_path: Path) -> None:
    """One looks ids up in it, the other multiplies with it: there is no graph that could do both."""
    text = {"num_hidden_layers": LAYERS, "tie_word_embeddings": True}
    folder = make_checkpoint(tmp_path / "tied", text=text, tied=True)
    plans = [plan_of(folder, 20, schedule=schedule) for schedule in (None, "fastv")]
    whole, chain = (plan.weight_bytes for plan in plans)
    bundle = export(plans[1], tmp_path / "bundle")
    table = plans[1].embedding_rows * plans[1].spec.decoder.hidden * 4
    assert chain - whole == table
    assert failures(plans[1], bundle.folder) == set()
    answer = Pipeline(bundle.folder).ask(picture(29), QUESTIONS[0], max_tokens=STEPS, ignore_eos=True)
    assert len(answer.token_ids) == STEPS
