"""A bundle that could never be asked is refused before any work, and what an export makes up is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import IMAGE_TOKEN_ID, TEMPLATE, edit_json
from exporting import export, plan_of
from raising import refused
from tokenizers import Tokenizer

from divprune_edge.export.reporter import show_bundle
from divprune_edge.manifest import DEFAULT_TEMPLATE
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.bundle import Bundle


@pytest.fixture
def plain(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("plain"), tmp_path / "tiny"))


def assert_refused(folder: Path, *values: object, **options: Any) -> None:
    """Check that no bundle is planned, for a reason that names these values."""
    with refused("bundle-cannot-be-asked", "'tiny'", *values):
        plan_of(folder, **options)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TEMPLATE.replace("<image>", "<|image|>"), "'<image>' once"),
        (TEMPLATE.replace("<image>", "<image><image>"), "'<image>' once"),
        (TEMPLATE.replace("{{ part['text'] }}", ""), "question once"),
        ("{{ raise_exception('no') }}", "(no)"),
        ("{% for", "not valid"),
    ],
)
def test_templates_that_never_work(plain: Path, template: str, reason: str) -> None:
    (plain / "chat_template.jinja").write_text(template)
    assert_refused(plain, reason, "chat_template.jinja")


def test_a_template_for_one_image_alone_is_refused_when_it_is_asked_otherwise(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = "{% set images = messages[0].content | selectattr('type', 'equalto', 'image') | list | length %}"
    only = "{% if images != 1 %}{{ raise_exception('one image, please') }}{% endif %}"
    (plain / "chat_template.jinja").write_text(one + only + TEMPLATE)
    encoder = Bundle.open(export(plan_of(plain), tmp_path / "bundle").folder).prompt_encoder()
    assert caplog.messages == []
    assert encoder.encode([Turn("user", "what ?", images=1)], [9]).visual_tokens == 9
    for images in (0, 2):
        with refused("template-refuses", "one image, please"):
            encoder.encode([Turn("user", "what ?", images=images)], [9] * images)


def test_a_prompt_without_room_for_an_answer(plain: Path) -> None:
    edit_json(plain / "config.json", lambda data: data["text_config"].update(max_position_embeddings=20))
    assert_refused(plain, 20, keep=9)


def test_a_tokenizer_that_gives_other_ids(plain: Path) -> None:
    def leave_a_gap(data: dict[str, Any]) -> None:
        token = data["added_tokens"][-1]
        data["added_tokens"].append({**token, "content": "<late>", "id": 500})

    edit_json(plain / "tokenizer.json", leave_a_gap)
    assert_refused(plain, "id 500", "'<late>'", "tokenizer.json")


def test_a_tokenizer_that_does_not_know_its_words(plain: Path) -> None:
    (plain / "tokenizer.json").write_text(
        json.dumps(
            {**json.loads((plain / "tokenizer.json").read_text()), "pre_tokenizer": {"type": "Nothing"}}
        )
    )
    assert_refused(plain, "tokenizer.json")


def test_truncation_and_padding_are_no_obstacle(plain: Path, tmp_path: Path) -> None:
    before = plan_of(plain)
    tokenizer = Tokenizer.from_file(str(plain / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=300)
    tokenizer.save(str(plain / "tokenizer.json"))
    turns = [Turn("user", "what is in the picture ?", images=1)]
    whole, cut = (
        export(plan, tmp_path / name) for name, plan in (("whole", before), ("cut", plan_of(plain)))
    )
    first, second = (
        Bundle.open(made.folder).prompt_encoder().encode(turns, [9]).ids for made in (whole, cut)
    )
    assert first == second


def test_a_placeholder_that_only_the_other_files_name(plain: Path, tmp_path: Path) -> None:
    """As transformers merges it on load; the bundle's tokenizer.json holds it."""
    transformers = pytest.importorskip("transformers")

    def forget(data: dict[str, Any]) -> None:
        data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != "<image>"]

    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    edit_json(plain / "tokenizer.json", forget)
    edit_json(
        plain / "tokenizer_config.json",
        lambda data: data.update(added_tokens_decoder={str(IMAGE_TOKEN_ID): {"content": "<image>", **flags}}),
    )
    bundle = Bundle.open(export(plan_of(plain), tmp_path / "bundle").folder)
    rows = bundle.manifest.language_model.embedding_rows
    ids = bundle.prompt_encoder().encode([Turn("user", "what is <image> ?", images=1)], [1]).ids
    assert (ids.count(rows), ids.count(IMAGE_TOKEN_ID)) == (1, 0)
    reference = transformers.AutoTokenizer.from_pretrained(plain)
    mine = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
    for text in ("a <image> the", "<image><s>what", "<IMAGE> a"):
        assert mine.encode(text).ids == reference(text)["input_ids"]


def test_a_template_that_was_made_up_is_said(
    checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = export(plan_of(checkpoint("no template")), tmp_path / "bundle")
    assert made.manifest.prompt.template_source == DEFAULT_TEMPLATE
    show_bundle(made.folder, made.manifest)
    assert (
        "The checkpoint has no chat template: prompts take the form that LLaVA-1.5 was"
        in capsys.readouterr().out
    )
    from divprune_edge.runtime.info import print_tables

    print_tables(Bundle.open(made.folder))
    shown = " ".join(capsys.readouterr().out.split())
    assert "the family's default: the checkpoint brought none" in shown


def test_the_made_up_template_has_a_place_for_a_system_text(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    made = export(plan_of(checkpoint("no template")), tmp_path / "bundle")
    encoder = Bundle.open(made.folder).prompt_encoder()
    text = encoder._render([Turn("system", "S"), Turn("user", "Q", images=1)], ["S", "Q"])
    assert text == "S USER: <image>\nQ ASSISTANT:"


def test_generation_settings_are_told(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(plain / "generation_config.json", lambda data: data.update(num_beams=3, repetition_penalty=1.2))
    made = export(plan_of(plain), tmp_path / "bundle")
    show_bundle(made.folder, made.manifest)
    shown = " ".join(capsys.readouterr().out.split())
    assert "repetition_penalty 1.2, num_beams 3 (not supported) (used with --checkpoint-defaults)" in shown
