"""Qwen2.5-VL and Qwen3-VL from images of any size to the ids of transformers: unpruned, pruned, in conversations."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import agree
from checkpoints import edit_json, make_checkpoint
from exporting import close, export, plan_of
from PIL import Image
from qwen_checkpoints import LEAST, MOST, QWEN, SHAPES, images_of, make_qwen_checkpoint
from qwen_reference import QwenReference
from raising import assert_told, refused

from divprune_edge import Pipeline
from divprune_edge.models.selectors.divprune import max_min_select

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

QUESTION = "what is in the picture ?"
LATER = "how many red star ?"
DIALECTS = ("portable", "onnxruntime")
STEPS = 24
GREEDY: dict[str, Any] = {"max_tokens": STEPS, "ignore_eos": True}
KEPT = 9
ROOM = {"max_position_embeddings": 512}

Opened = Callable[..., Pipeline]
every_family = pytest.mark.parametrize("family", QWEN)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)
every_numbering = pytest.mark.parametrize("numbering", ["original", "compact"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a family's checkpoint, with heads of 16, as dialect onnxruntime needs them."""

    @cache
    def get(family: str) -> Path:
        return make_qwen_checkpoint(tmp_path_factory.mktemp(family) / "tiny", family=family, text=ROOM)

    return get


@pytest.fixture(scope="module")
def reference(folder: Callable[[str], Path]) -> Callable[[str], QwenReference]:
    torch.set_num_threads(1)

    @cache
    def get(family: str) -> QwenReference:
        return QwenReference(folder(family))

    return get


@pytest.fixture(scope="module")
def opened(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return a pipeline, opened once."""

    @cache
    def get(family: str, dialect: str = "portable", numbering: str = "original", **options: Any) -> Pipeline:
        options = {"keep": KEPT, **options}
        plan = plan_of(folder(family), dialect=dialect, numbering=numbering, **options)
        return Pipeline(export(plan, tmp_path_factory.mktemp("bundle") / "tiny").folder, threads=1)

    return get


def forbidden(pipeline: Pipeline) -> tuple[int, ...]:
    return tuple(pipeline.bundle.manifest.prompt.forbidden_ids)


def answered(
    pipeline: Pipeline, stock: QwenReference, turns: Sequence[tuple[str, Sequence[Image.Image]]]
) -> tuple[list[int], list[float]]:
    """Return what transformers answers to a conversation of which the pipeline's selector has pruned the images."""
    images = [image for _, of_turn in turns for image in of_turn]
    inputs = stock.inputs(stock.rendered([(text, len(of_turn)) for text, of_turn in turns]), images)
    if pipeline.selector is None:
        return stock.generated(inputs, STEPS, forbidden(pipeline))
    kept = [kept_by_hand(stock, image, pipeline.selector.keep) for image in images]
    prompt = stock.spliced(inputs, kept, pipeline.bundle.manifest.numbering)
    return stock.greedy(stock.followed(prompt, STEPS, forbidden(pipeline)), forbidden(pipeline))


def kept_by_hand(stock: QwenReference, image: Image.Image, keep: int) -> Any:
    """Return which of transformers' own visual tokens DivPrune keeps, by these alone; all where there are no more."""
    inputs = stock.inputs([stock.place], [image])
    with torch.inference_mode():
        seen = stock.model.get_image_features(
            pixel_values=inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"], return_dict=True
        )
    rows = seen.pooler_output[0].numpy()
    if len(rows) <= keep:
        return np.arange(len(rows))
    return np.sort(max_min_select(rows, np.ones(len(rows), bool), keep))


# --- transformers' own -----------------------------------------------------------------------------------------


@every_family
@every_dialect
@pytest.mark.parametrize("count", [0, 1, 2])
def test_unpruned_is_transformers_own_generate(
    family: str, dialect: str, count: int, opened: Opened, reference: Callable[[str], QwenReference]
) -> None:
    pipeline, stock = opened(family, dialect).with_selector("none"), reference(family)
    images = images_of(SHAPES[3 * DIALECTS.index(dialect) :][:count])
    inputs = stock.inputs(stock.rendered([(QUESTION, count)]), images)
    answer = pipeline.ask(images, QUESTION, **GREEDY)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert len(answer.image_tokens) == count
    assert answer.visual_tokens == len(answer.kept_indices) == int((inputs["input_ids"] == stock.place).sum())
    agree(answer.token_ids, *stock.generated(inputs, STEPS, forbidden(pipeline)))
    assert len(set(answer.token_ids)) > 1


@every_family
@every_dialect
@every_numbering
@pytest.mark.parametrize("count", [1, 2])
def test_pruned_is_what_is_spliced_by_hand(
    family: str,
    dialect: str,
    numbering: str,
    count: int,
    opened: Opened,
    reference: Callable[[str], QwenReference],
) -> None:
    pipeline, stock = opened(family, dialect, numbering), reference(family)
    images = images_of(SHAPES[count:][:count], seed=5)
    answer = pipeline.ask(images, QUESTION, **GREEDY)
    kept = [kept_by_hand(stock, image, KEPT) for image in images]
    assert answer.kept_indices.tolist() == np.concatenate(kept).tolist()
    assert answer.image_tokens == (KEPT,) * count
    agree(answer.token_ids, *answered(pipeline, stock, [(QUESTION, images)]))


@every_family
@every_numbering
def test_an_image_with_no_more_tokens_than_k_is_not_pruned(
    family: str, numbering: str, opened: Opened, reference: Callable[[str], QwenReference]
) -> None:
    pipeline, stock = opened(family, numbering=numbering, keep=20), reference(family)
    small, large = images_of([(8, 8), (77, 131)])
    for images, tokens in (([small], (16,)), ([small, large], (16, 20)), ([large, small], (20, 16))):
        answer = pipeline.ask(images, QUESTION, **GREEDY)
        assert answer.image_tokens == tokens
        agree(answer.token_ids, *answered(pipeline, stock, [(QUESTION, images)]))


@every_family
def test_every_shape_has_as_many_tokens_as_transformers_and_the_same(
    family: str, opened: Opened, reference: Callable[[str], QwenReference]
) -> None:
    pipeline, stock = opened(family).with_selector("none"), reference(family)
    vision, counts = pipeline.vision, set()
    for image in images_of([*SHAPES, (1, 200), (200, 1)]):
        inputs = stock.inputs([stock.place], [image])
        prompt = stock.spliced(inputs, [range(inputs["input_ids"].shape[1])], "original")
        (read,) = vision.read([image])
        seen = vision.see([read], None)
        found = pipeline.backend.to_host(seen.tokens)[0, seen.rows]
        wanted = torch.cat([prompt.rows, *prompt.beside], dim=1).numpy()
        assert vision.count(read, None) == len(wanted)
        assert close(found, wanted), image.size
        assert np.array_equal(read.places, prompt.positions)
        counts.add(len(wanted))
    assert len(counts) > 8
    assert min(counts) >= LEAST
    assert max(counts) <= pipeline.bundle.manifest.candidates


@every_family
def test_a_smaller_bound_is_that_of_transformers(
    family: str, opened: Opened, folder: Callable[[str], Path]
) -> None:
    most = 25 * 64
    pipeline = opened(family, max_pixels=most)
    stock = QwenReference(folder(family), shortest_edge=LEAST * 64, longest_edge=most)
    (image,) = images_of([(240, 320)])
    for asked in (pipeline, pipeline.with_selector("none")):
        answer = asked.ask(image, QUESTION, **GREEDY)
        agree(answer.token_ids, *answered(asked, stock, [(QUESTION, [image])]))
    assert LEAST < answer.visual_tokens <= 25 < MOST


# --- conversations and batches ---------------------------------------------------------------------------------


@every_family
@every_dialect
@pytest.mark.parametrize("selector", [None, "none"])
def test_images_that_join_later_are_transformers_own(
    family: str,
    dialect: str,
    selector: str | None,
    opened: Opened,
    reference: Callable[[str], QwenReference],
) -> None:
    pipeline, stock = opened(family, dialect).with_selector(selector), reference(family)
    first, second = images_of([(33, 120), (64, 64)])
    chat = pipeline.chat(None)
    turns: list[tuple[str, Sequence[Image.Image]]] = []
    for text, images in ((LATER, []), (QUESTION, [first]), (LATER, []), (QUESTION, [second])):
        turns.append((text, images))
        answer = chat.ask(text, image=images, **GREEDY)
        agree(answer.token_ids, *answered(pipeline, stock, turns))
        turns.append((answer.answer, []))
    assert len(answer.image_tokens) == 2


@every_family
@every_dialect
@every_numbering
def test_a_conversation_is_its_prompt_whatever_came_before(
    family: str, dialect: str, numbering: str, opened: Opened
) -> None:
    pipeline, chance = opened(family, dialect, numbering), random.Random(7)
    pictures = images_of([(70, 100), (8, 8), (9, 130)])
    options: dict[str, Any] = {"max_tokens": 5, "ignore_eos": True}
    for selector in (None, "none"):
        asked = pipeline.with_selector(selector)
        chat = asked.chat(pictures[: chance.choice([0, 1, 2])])
        for _ in range(5):
            new, before = chance.sample(pictures, chance.choice([0, 0, 1])), copy(chat)
            raw = chance.random() < 0.3
            marks = "and <|vision_start|><|image_pad|><|vision_end|> " * (len(chat._images) + len(new))
            text = f"{marks}what ?" if raw else QUESTION
            found = chat.ask(text, image=new, raw_prompt=raw, **options)
            fresh = asked.chat(before._images)
            fresh._turns = list(before._turns)
            again = fresh.ask(text, image=new, raw_prompt=raw, **options)
            assert found.token_ids == again.token_ids
            assert np.array_equal(found.kept_indices, again.kept_indices)


@every_family
@every_dialect
@every_numbering
def test_a_batch_answers_as_alone(family: str, dialect: str, numbering: str, opened: Opened) -> None:
    pipeline = opened(family, dialect, numbering)
    first, second, small = images_of([(33, 120), (100, 47), (8, 8)])
    pairs: list[Any] = [
        (None, LATER),
        (first, QUESTION),
        ([first, second], QUESTION),
        ([second, small], "which number ?"),
        (small, LATER),
    ]
    for selector in (None, "none"):
        asked = pipeline.with_selector(selector)
        for found, pair in zip(asked.ask_batch(pairs, **GREEDY), pairs, strict=True):
            wanted = asked.ask(*pair, **GREEDY)
            assert (found.token_ids, found.image_tokens) == (wanted.token_ids, wanted.image_tokens)
            assert np.array_equal(found.kept_indices, wanted.kept_indices)


@every_family
@every_dialect
@pytest.mark.parametrize("selector", [None, "none"])
def test_a_prompt_cut_anywhere_gives_the_same_logits(
    family: str, dialect: str, selector: str | None, opened: Opened
) -> None:
    pipeline = opened(family, dialect).with_selector(selector)
    backend, vision = pipeline.backend, pipeline.vision
    inputs = vision.read(images_of([(33, 120), (8, 8)]))
    ids = pipeline.prompts.encode_raw(
        [_raw("<|im_start|> what is <|image_pad|> and <|image_pad|> which ?")],
        [vision.count(image, pipeline.selector) for image in inputs],
    )
    seen = vision.see(inputs, pipeline.selector)
    prompt = pipeline.prompts.place(ids, seen.images)
    assert prompt.positions.shape == (3, len(prompt))
    session = backend.session()
    slot = session.add(seen.tokens)

    def logits(cuts: Sequence[int]) -> np.ndarray:
        session.truncate(slot, 0)
        for begin, end in zip([0, *cuts], [*cuts, len(prompt)], strict=True):
            found = session.extend(slot, prompt.ids[begin:end], prompt.positions[:, begin:end])
        return np.array(found.logits)

    whole = logits([])
    for cut in range(1, len(prompt)):
        assert close(logits([cut]), whole, 1e-5), cut
    assert close(logits(range(1, len(prompt))), whole, 1e-5)
    session.truncate(slot, 0)
    assert close(np.array(session.extend(slot, prompt.ids, prompt.positions, 7).logits), whole, 1e-5)


def _raw(text: str) -> Any:
    from divprune_edge.processing.prompt import Turn

    return Turn("user", text)


@every_family
@every_dialect
def test_what_comes_before_the_first_image_is_prefilled_once(
    family: str, dialect: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = copy(opened(family, dialect))
    pipeline._prefix = {}
    first, second = images_of([(33, 120), (100, 47)])
    pipeline.ask(first, QUESTION, max_tokens=1)
    (before,) = pipeline._prefix
    assert len(before) > 4
    fed: list[int] = []
    kind = type(pipeline.backend.session())
    extend = kind.extend
    monkeypatch.setattr(
        kind, "extend", lambda s, slot, ids, *r: (fed.append(len(ids)), extend(s, slot, ids, *r))[1]
    )
    again = pipeline.ask([second, first], QUESTION, **GREEDY)
    assert fed == [again.prompt_tokens - len(before)]
    pipeline._prefix = {}
    assert pipeline.ask([second, first], QUESTION, **GREEDY).token_ids == again.token_ids
    assert fed[1] == again.prompt_tokens


@every_family
def test_an_image_beyond_what_the_model_takes_is_refused(family: str, opened: Opened) -> None:
    pipeline = opened(family)
    long = Image.new("RGB", (402, 2))
    with refused("image-too-elongated", "402 x 2", 200):
        pipeline.ask(long, QUESTION)
    with refused("image-too-elongated", "Question 2", "2 x 402"):
        pipeline.ask_batch(
            [(images_of([(8, 8)])[0], QUESTION), (long.transpose(Image.Transpose.ROTATE_90), QUESTION)]
        )
    assert pipeline.ask(long.crop((0, 0, 400, 2)), QUESTION, max_tokens=1).visual_tokens == KEPT


# --- positions as they were ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Callable[[str], Pipeline]]:
    """transformers' model of a LLaVA-1.5 of 25 tokens an image, and its bundle with a numbering."""
    from transformers import LlavaForConditionalGeneration

    path = tmp_path_factory.mktemp("llava")
    make_checkpoint(path / "tiny", text={"max_position_embeddings": 96})
    for numbering in ("original", "compact"):
        export(plan_of(path / "tiny", 7, numbering=numbering), path / numbering)
    model = LlavaForConditionalGeneration.from_pretrained(path / "tiny", dtype=torch.float32).eval()
    return model, lambda numbering: Pipeline(path / numbering, threads=1)


@pytest.mark.parametrize("count", [1, 2])
@every_numbering
def test_llava_keeps_positions_where_it_is_asked_to(
    llava: tuple[Any, Callable[[str], Pipeline]], count: int, numbering: str
) -> None:
    model, opened = llava
    pipeline = opened(numbering)
    pictures = images_of([(50, 33), (35, 35)])[:count]
    for found in (
        pipeline.ask(pictures, QUESTION, **GREEDY),
        pipeline.ask(pictures, QUESTION, prefill_chunk=5, **GREEDY),
        pipeline.ask_batch([(pictures, QUESTION), (None, LATER)], **GREEDY)[0],
    ):
        vision, kept = pipeline.vision, np.split(found.kept_indices, count)
        seen = [vision.see(vision.read([one]), None) for one in pictures]
        rows = [pipeline.backend.to_host(one.tokens)[0][kept[i]] for i, one in enumerate(seen)]
        ids = pipeline.prompts.encode([_question(count)], [25] * count).ids
        text, columns = [], []
        for column, token in enumerate(ids):
            image, row = divmod(token - pipeline.bundle.manifest.language_model.embedding_rows, 25)
            if image < 0:
                text.append(model.get_input_embeddings()(torch.tensor(token)))
            elif row not in kept[image]:
                continue
            else:
                text.append(torch.from_numpy(rows[image][list(kept[image]).index(row)]))
            columns.append(column)
        after = len(ids)
        if numbering == "compact":
            columns, after = list(range(len(columns))), len(columns)
        wanted: list[int] = []
        with torch.inference_mode():
            for step in range(STEPS):
                more = [model.get_input_embeddings()(torch.tensor(token)) for token in wanted]
                logits = model(
                    inputs_embeds=torch.stack([*text, *more])[None],
                    position_ids=torch.tensor([[*columns, *range(after, after + step)]]),
                ).logits[0, -1]
                logits[list(pipeline.bundle.manifest.prompt.forbidden_ids)] = -torch.inf
                wanted.append(int(logits.argmax()))
        assert list(found.token_ids) == wanted
        assert len(set(wanted)) > 1


def _question(images: int) -> Any:
    from divprune_edge.processing.prompt import Turn

    return Turn("user", QUESTION, images=images)


def test_positions_that_were_pruned_use_up_the_context(
    llava: tuple[Any, Callable[[str], Pipeline]], tmp_path: Path
) -> None:
    """Three images of 25 tokens and the text leave 96 positions nothing, though seven are kept of each."""
    _, opened = llava
    pictures = images_of([(20, 20)] * 4)
    original, compact = opened("original"), opened("compact")
    answer = original.ask(pictures[:3], QUESTION, max_tokens=90, ignore_eos=True)
    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + 3 * 18 + len(answer.token_ids) == 96
    with refused("prompt-too-long", "96", "--positions compact"):
        original.ask(pictures, QUESTION)
    with refused("prompt-too-long", "96"):
        original.ask_batch([(pictures, QUESTION)])
    assert compact.ask(pictures, QUESTION, max_tokens=3, ignore_eos=True).finish_reason == "length"


# --- commands --------------------------------------------------------------------------------------------------


@every_family
def test_commands(family: str, opened: Opened, command: Callable[..., Any], tmp_path: Path) -> None:
    pipeline = opened(family)
    bundle = pipeline.bundle.path
    pictures = images_of([(70, 100), (8, 8)])
    for name, picture in zip("ab", pictures, strict=True):
        picture.save(tmp_path / f"{name}.png")
    told = command("info", bundle)
    assert (told.code, told.err) == (0, "")
    assert family in told.out
    facts = json.loads(command("info", bundle, "--json").out)
    assert (facts["family"], facts["numbering"]) == (family, "original")
    images = ("--image", tmp_path / "a.png", "--image", tmp_path / "b.png")
    asked = command("ask", bundle, *images, "--json", "--max-tokens", 4, QUESTION)
    assert json.loads(asked.out)["token_ids"] == list(
        pipeline.ask(pictures, QUESTION, max_tokens=4).token_ids
    )
    drawn, one = tmp_path / "kept.png", ("--image", tmp_path / "a.png", "--max-tokens", 2)
    shown = command("ask", bundle, *one, "--show-kept", drawn, QUESTION)
    assert shown.code == 0, shown.err
    page = command("compare-selectors", bundle, *one, "-o", tmp_path / "page.html", QUESTION)
    assert page.code == 0, page.err
    assert f"{KEPT} of 54 visual tokens" in (tmp_path / "page.html").read_text(encoding="utf-8")
    with Image.open(drawn) as drawing:
        assert drawing.height > drawing.width * 70 / 100
    lines = [{"image": f"{name}.png", "question": QUESTION, "answer": "red"} for name in "ab"]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    batch = command("batch", bundle, tmp_path / "questions.jsonl", "--max-tokens", 4)
    assert batch.code == 0, batch.err
    found = [json.loads(line)["token_ids"] for line in batch.out.splitlines()]
    assert found == [list(pipeline.ask(one, QUESTION, max_tokens=4).token_ids) for one in pictures]
    result = command(
        "evaluate", bundle, "--data", tmp_path, "--output", tmp_path / "out", "--max-tokens", 2, "--json"
    )
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert {row["questions"] for row in rows} == {2}
    tokens = {row["method"]: row["visual_tokens"] for row in rows}
    assert (tokens[f"divprune-{KEPT}"], tokens["none"]) == (KEPT, (54 + 16) / 2)
    for kind in ("build", "trtexec"):
        more = ("--tensorrt", "10.3", "--output", tmp_path / "x") if kind == "trtexec" else ()
        built = command(kind, bundle, *more)
        assert_told(built.code, built.err, "dialect-not-for-tensorrt", "portable")


def test_a_profile(opened: Opened, command: Callable[..., Any], tmp_path: Path) -> None:
    bundle, path = opened("qwen3_vl").bundle.path, tmp_path / "a.png"
    images_of([(70, 100)])[0].save(path)
    measured = command("profile", bundle, "--image", path, "--runs", 1, "--json", tmp_path / "p.json")
    assert measured.code == 0, measured.err
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))


@every_family
@pytest.mark.parametrize(
    ("part", "change", "values"),
    [
        ("patches", {"max_pixels": 50 * 64}, [3200]),
        ("patches", {"patch": 8, "merge": 1}, [384]),
        ("patches", {"temporal": 1}, [48]),
        ("assemble", {"rows": 90}, [90]),
        ("assemble", {"tiles": 2}, [2]),
        ("assemble", None, ["patches"]),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(
    family: str,
    part: str,
    change: dict[str, int] | None,
    values: list[object],
    opened: Opened,
    tmp_path: Path,
) -> None:
    bundle = shutil.copytree(opened(family).bundle.path, tmp_path / "bundle")

    def edit(data: dict[str, Any]) -> None:
        if change is None:
            data[part] = None
        else:
            (data["preprocessing"] if part == "patches" else data)[part].update(change)

    edit_json(bundle / "manifest.json", edit)
    with refused("manifest-does-not-fit", *values):
        Pipeline(bundle)
