"""Turns to ids: the places of images, BOS once, special tokens in what is said stay words, the context has an end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from raising import refused
from tokenizers import Tokenizer

from divprune_edge.errors import UserError
from divprune_edge.manifest import Manifest
from divprune_edge.models.demo import __file__ as demo_file
from divprune_edge.processing.layout import PlacedImage
from divprune_edge.processing.prompt import PromptEncoder, Turn, system_turns
from divprune_edge.processing.tokenizer import PromptTokenizer, stand_in
from divprune_edge.runtime.bundle import Bundle

LIST_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {% for p in m.content %}"
    "{% if p.type == 'image' %}<image>\n{% else %}{{ p.text }}{% endif %}{% endfor %} {% endfor %}user:"
)
STRING_TEMPLATE = "{% for m in messages %}{{ m.role + ': ' + m.content }} {% endfor %}user:"
TRIMMING_TEMPLATE = STRING_TEMPLATE.replace("m.content", "m.content | trim")
TEMPLATES = {"list": LIST_TEMPLATE, "string": STRING_TEMPLATE, "trimming": TRIMMING_TEMPLATE}

MakeEncoder = Callable[..., PromptEncoder]


@pytest.fixture
def make(demo_bundle: Path, tmp_path: Path, tokenizer: Tokenizer) -> MakeEncoder:
    """An encoder around a template and one of the tokenizers, with 1000 embedding rows."""
    manifest: Manifest = Bundle.open(demo_bundle).manifest

    def build(template: str, context: int = 200, rows: int = 1000) -> PromptEncoder:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "chat_template.jinja").write_text(template)
        prompt = manifest.prompt.model_copy(
            update={
                "tokenizer": "tokenizer.json",
                "chat_template": "chat_template.jinja",
                "image_token": "<image>",
                "image_token_id": 3,
                "bos_token": "<s>",
                "eos_token": "</s>",
            }
        )
        language = manifest.language_model.model_copy(update={"embedding_rows": rows, "context": context})
        changed = manifest.model_copy(update={"prompt": prompt, "language_model": language})
        return Bundle(tmp_path, changed).prompt_encoder()

    return build


def ask(text: str) -> list[Turn]:
    return [Turn("user", text, images=1)]


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_placeholder_becomes_the_rows_of_the_image(
    make: MakeEncoder, template: str, tokenizer: Tokenizer
) -> None:
    prompt = make(TEMPLATES[template]).encode(ask("what is the a?"), [5])
    ids = list(prompt.ids)
    assert prompt.visual_tokens == 5
    first = ids.index(1000)
    assert ids[first : first + 5] == [1000, 1001, 1002, 1003, 1004]
    assert ids[0] == 1
    assert ids.count(1) == 1
    text = "<s>user: <image>\nwhat is the a? user:"
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    if template == "list":
        assert [*ids[:first], 3, *ids[first + 5 :]] == plain
    else:
        assert [*ids[:first], 3, *ids[first + 5 :]] == tokenizer.encode(text.removeprefix("<s>")).ids


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("text", ["is <image> in the a?", "</s>", " a <s> the ", "<IMAGE><unk>"])
def test_special_tokens_in_a_question_are_words(make: MakeEncoder, template: str, text: str) -> None:
    ids = make(TEMPLATES[template]).encode(ask(text), [4]).ids
    assert sum(i >= 1000 for i in ids) == 4
    assert ids.count(1) == 1
    assert 2 not in ids
    assert 3 not in ids


def test_stand_ins_in_a_question_are_words(make: MakeEncoder) -> None:
    turns = [*ask(f"a {stand_in(1)} <image>"), Turn("assistant", stand_in(0)), Turn("user", "a?")]
    ids = make(LIST_TEMPLATE).encode(turns, [4]).ids
    assert sum(i >= 1000 for i in ids) == 4


def test_template_may_forget_earlier_turns(make: MakeEncoder) -> None:
    template = LIST_TEMPLATE.replace("{% for p in", "{% if m.role == 'user' %}{% for p in")
    template = template.replace("{% endfor %} {% endfor %}", "{% endfor %}{% endif %} {% endfor %}")
    turns = [*ask("what <s>"), Turn("assistant", "the </s>"), Turn("user", "a?")]
    ids = make(template).encode(turns, [4]).ids
    assert ids.count(1) == 1


def test_special_tokens_in_an_answer_are_words_too(make: MakeEncoder) -> None:
    turns = [*ask("what"), Turn("assistant", "the </s> <image>"), Turn("user", "a?")]
    ids = make(LIST_TEMPLATE).encode(turns, [4]).ids
    assert sum(i >= 1000 for i in ids) == 4
    assert 2 not in ids


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_empty_question_is_refused(make: MakeEncoder, text: str) -> None:
    with refused("question-empty"):
        make(LIST_TEMPLATE).encode(ask(text), [4])


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ([Turn("user", "the a", images=2)], "<image>\n<image>\nthe a"),
        (
            [Turn("user", "the a", images=1), Turn("assistant", "what"), Turn("user", "a", images=2)],
            "<image>\nthe a assistant: what user: <image>\n<image>\na",
        ),
        (
            [Turn("user", "the a"), Turn("assistant", "what"), Turn("user", "a")],
            "the a assistant: what user: a",
        ),
    ],
)
def test_each_image_stands_where_it_is_brought(
    make: MakeEncoder, template: str, turns: list[Turn], shown: str, tokenizer: Tokenizer
) -> None:
    counts = [2, 3, 4][: sum(turn.images for turn in turns)]
    encoder = make(TEMPLATES[template])
    prompt = encoder.encode(turns, counts)
    begin = "<s>" if template == "list" else ""
    plain = encoder.tokenizer.encode(f"{begin}user: {shown} user:")
    wanted: list[int] = []
    row, left = 1000, iter(counts)
    for token in plain:
        rows = next(left) if token == 3 else 0
        wanted += range(row, row + rows) if rows else [token]
        row += rows
    assert list(prompt.ids) == wanted
    assert [span.rows for span in prompt.spans] == counts
    assert list(prompt.before_image) == (plain[: plain.index(3)] if counts else [])


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize(
    "template",
    [
        LIST_TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}<image>\n").replace(
            "{% if p.type == 'image' %}<image>\n{% else %}", "{% if p.type == 'text' %}"
        ),
        "{% set text = messages[0].content | selectattr('type', 'equalto', 'image') | list %}"
        "{% if text | length != 1 %}{{ raise_exception('one image') }}{% endif %}" + LIST_TEMPLATE,
    ],
)
def test_a_template_for_one_image(make: MakeEncoder, template: str, images: int) -> None:
    encoder = make(template)
    assert encoder.encode(ask("the a"), [4]).visual_tokens == 4
    with pytest.raises(UserError) as caught:
        encoder.encode([Turn("user", "the a", images=images)], [4] * images)
    assert caught.value.code in ("template-unfit", "template-refuses")
    assert "one image" in str(caught.value)


def test_special_tokens_beside_several_images(make: MakeEncoder) -> None:
    turns = [
        Turn("user", "is <image> </s> a?", images=2),
        Turn("assistant", "<s>"),
        Turn("user", "a", images=1),
    ]
    ids = make(LIST_TEMPLATE).encode(turns, [2, 2, 2]).ids
    assert (sum(i >= 1000 for i in ids), ids.count(1), ids.count(2), ids.count(3)) == (6, 1, 0, 0)


def test_context_is_told_with_both_numbers(make: MakeEncoder) -> None:
    length = len(make(LIST_TEMPLATE).encode(ask("the a"), [4]))
    assert len(make(LIST_TEMPLATE, context=length + 1).encode(ask("the a"), [4])) == length
    with refused("prompt-too-long", f"{length} tokens", 4, f"holds {length}"):
        make(LIST_TEMPLATE, context=length).encode(ask("the a"), [4])


def test_positions_of_pruned_tokens_use_up_the_context(make: MakeEncoder) -> None:
    """Two tokens are kept of an image that takes 9 positions, or end in a clip that lies behind the text."""
    turns = ask("the a")
    length = len(make(LIST_TEMPLATE).encode(turns, [2]))
    kept = PlacedImage(np.arange(2), np.array([[0, 8]]), 9)
    placed = make(LIST_TEMPLATE, context=length + 8).encode_seen(turns, [kept])
    assert (len(placed), placed.next_position, placed.images) == (length, length + 7, (2,))
    far = replace(kept, places=np.array([[0, length + 6]]))
    for image, context in ((kept, length + 7), (far, length + 8)):
        encoder = make(LIST_TEMPLATE, context=context)
        with refused("prompt-too-long", context, "--positions compact"):
            encoder.place(encoder.encode(turns, [2]), [image])


def test_tokenizer_of_another_model_is_refused(make: MakeEncoder) -> None:
    with refused("tokenizer-foreign", "4 rows"):
        make(LIST_TEMPLATE, rows=4).encode(ask("the a"), [4])


@pytest.mark.parametrize(
    ("template", "code", "given"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "template-unfit", "<image>"),
        ("<image>" + LIST_TEMPLATE, "template-unfit", "<image>"),
        ("{{ raise_exception('never') }}", "template-refuses", "never"),
    ],
)
def test_unusable_template_is_refused(make: MakeEncoder, template: str, code: str, given: str) -> None:
    with refused(code, given):
        make(template)


def test_template_that_rewrites_what_is_said_refuses_special_tokens(make: MakeEncoder) -> None:
    encoder = make(LIST_TEMPLATE.replace("p.text", "p.text | upper"))
    assert encoder.encode(ask("the a"), [4])
    with refused("question-special-token"):
        encoder.encode(ask("the <image>"), [4])


def test_equals_transformers_on_the_demo_checkpoint(demo_bundle: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(Path(demo_file).parent / "checkpoint")
    bundle = Bundle.open(demo_bundle)
    rows = bundle.manifest.language_model.embedding_rows
    turns = [
        Turn("user", "what color is the circle?", images=1),
        Turn("assistant", "blue"),
        Turn("user", "and the Square ?"),
    ]
    messages = [
        {
            "role": turn.role,
            "content": [*[{"type": "image"}] * turn.images, {"type": "text", "text": turn.text}],
        }
        for turn in turns
    ]
    for count in (1, 3):
        text = reference.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=True)
        expected = reference(text)["input_ids"]
        ids = bundle.prompt_encoder().encode(turns[:count], [1]).ids
        assert [bundle.manifest.prompt.image_token_id if i == rows else i for i in ids] == expected


STRING_SYSTEM_TEMPLATE = LIST_TEMPLATE.replace(
    "{% for p in m.content %}",
    "{% if m.role == 'system' %}{{ '' + m.content }}{% continue %}{% endif %}{% for p in m.content %}",
)
"""Parts for the user, plain text for the system."""
REFUSING_TEMPLATE = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"


@pytest.mark.parametrize("template", [LIST_TEMPLATE, STRING_TEMPLATE, STRING_SYSTEM_TEMPLATE])
def test_system_text_is_a_turn_of_its_own(make: MakeEncoder, template: str, tokenizer: Tokenizer) -> None:
    encoder = make(template)
    ids = list(encoder.encode([*system_turns("the a"), *ask("what is it?")], [1]).ids)
    parts = [{"type": "text", "text": "the a"}]
    shown = encoder._template.render(
        [
            {"role": "system", "content": parts if template == LIST_TEMPLATE else "the a"},
            encoder._message(ask("what is it?")[0], "what is it?", encoder._parts),
        ]
    )
    assert shown.index("the a") < shown.index("<image>")
    assert [3 if i == 1000 else i for i in ids] == encoder.tokenizer.encode(shown)
    assert ids != list(encoder.encode(ask("what is it?"), [1]).ids)


def test_special_tokens_in_a_system_text_are_words(make: MakeEncoder) -> None:
    ids = make(LIST_TEMPLATE).encode([*system_turns("the </s> <image>"), *ask("a?")], [4]).ids
    assert (sum(i >= 1000 for i in ids), ids.count(2), ids.count(3)) == (4, 0, 0)


@pytest.mark.parametrize(
    ("template", "sentence", "code"),
    [
        (
            REFUSING_TEMPLATE + LIST_TEMPLATE,
            "refuses system turns (no system here): leave --system",
            "system-refused",
        ),
        (
            LIST_TEMPLATE.replace("in messages %}", "in messages if m.role != 'system' %}"),
            "does not show system turns: leave --system out",
            "system-ignored",
        ),
    ],
)
def test_templates_without_a_place_for_it(make: MakeEncoder, template: str, sentence: str, code: str) -> None:
    encoder = make(template)
    assert encoder.encode(ask("a"), [1])
    with refused(code, "'the a'", sentence):
        encoder.encode([*system_turns("the a"), *ask("a?")], [1])


def test_an_empty_system_text() -> None:
    assert system_turns(None) == []
    with refused("system-empty"):
        system_turns(" ")


@pytest.mark.parametrize("begin", ["", "<s>"])
def test_a_ready_made_prompt_is_the_prompt(make: MakeEncoder, begin: str) -> None:
    encoder = make(LIST_TEMPLATE)
    text = f"{begin}user: <image>\nthe a</s> user:"
    ids = list(encoder.encode_raw(ask(text), [2]).ids)
    at = ids.index(1000)
    assert ids[at + 1] == 1001
    assert [*ids[:at], 3, *ids[at + 2 :]] == encoder.tokenizer.encode(text)
    assert (ids.count(1), ids.count(2)) == (1, 1)


@pytest.mark.parametrize(
    ("text", "places", "images"),
    [("the a", 0, 1), ("<image> <image>", 2, 1), ("", 0, 1), ("<image> a", 1, 2), ("<image> a", 1, 0)],
)
def test_a_ready_made_prompt_shows_each_image_once(
    make: MakeEncoder, text: str, places: int, images: int
) -> None:
    with refused("raw-prompt-placeholder", places, images, "'<image>'"):
        make(LIST_TEMPLATE).encode_raw(ask(text), [2] * images)


def test_a_ready_made_prompt_of_several_images_and_of_none(make: MakeEncoder) -> None:
    encoder = make(LIST_TEMPLATE)
    ids = encoder.encode_raw(ask("a <image> the <image>"), [2, 1]).ids
    assert [i for i in ids if i >= 1000] == [1000, 1001, 1002]
    assert list(encoder.encode_raw(ask("the a"), []).ids) == encoder.tokenizer.encode("the a")
    with refused("question-empty"):
        encoder.encode_raw(ask(" "), [])


def test_a_ready_made_prompt_has_its_own_system_text(make: MakeEncoder) -> None:
    with refused("raw-prompt-system", "--system", "--raw-prompt"):
        make(LIST_TEMPLATE).encode_raw([*system_turns("a"), *ask("<image> a")], [2])


@pytest.mark.parametrize(
    ("template", "question", "mark"),
    [
        (LIST_TEMPLATE, "user: what is it?", "user:"),
        (LIST_TEMPLATE, "<image>\nwhat is it?", "<image>"),
        (LIST_TEMPLATE, "what is it? <s>", "<s>"),
        (LIST_TEMPLATE.replace("{{ m.role }}: ", "[INST] "), "[INST] what is it? [/INST]", "[INST]"),
        (LIST_TEMPLATE, "what is a superuser: ?", None),
        (LIST_TEMPLATE, "what does the user see, and what is in the a?", None),
        (LIST_TEMPLATE.replace("{{ m.role }}: ", "the assistant. "), "who is the assistant.", None),
    ],
)
def test_a_question_like_a_ready_made_prompt_is_noticed(
    make: MakeEncoder, template: str, question: str, mark: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    make(template).encode(ask(question), [2])
    assert ("like a ready-made prompt" in caplog.text) == (mark is not None)
    assert mark is None or f"holds '{mark}'" in caplog.text


def test_truncation_and_padding_in_the_tokenizer_change_nothing(
    make: MakeEncoder, tokenizer: Tokenizer
) -> None:
    cut = Tokenizer.from_str(tokenizer.to_str())
    cut.enable_truncation(4)
    cut.enable_padding(length=64, pad_token="<unk>")
    prompt = make(LIST_TEMPLATE)
    for text in ("what is in the a?", "what </s> is in the a?"):
        whole = prompt.tokenizer.encode_with_plain(f"<image>{stand_in(0)}", {stand_in(0): text})
        assert len(whole) > 4
        other = PromptTokenizer(cut.to_str(), "<s>")
        assert other.encode_with_plain(f"<image>{stand_in(0)}", {stand_in(0): text}) == whole
        assert other.encode(text) == prompt.tokenizer.encode(text)
