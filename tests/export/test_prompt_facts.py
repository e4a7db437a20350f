"""Special tokens, stop ids and chat templates, wherever a checkpoint keeps them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from raising import refused

from divprune_edge.export.prompt_facts import PromptFacts, read_prompt
from divprune_edge.models.files import CheckpointFiles

TOKENIZER: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}},
    "added_tokens": [
        {"id": 0, "content": "<unk>"},
        {"id": 6, "content": "<image>"},
        {"id": 5, "content": "<pad>"},
    ],
}
SPECIAL: dict[str, Any] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def read(
    folder: Path, files: dict[str, Any], config: dict[str, Any] | None = None, rows: int = 9
) -> PromptFacts:
    for name, content in {"tokenizer.json": TOKENIZER, "tokenizer_config.json": SPECIAL, **files}.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_prompt(CheckpointFiles(folder), config or {}, 6, rows, "{{ messages }}")


def test_tokens_and_ids(tmp_path: Path) -> None:
    facts = read(tmp_path, {})
    assert (facts.entry.image_token, facts.entry.image_token_id) == ("<image>", 6)
    assert (facts.entry.bos_token, facts.entry.eos_token, facts.entry.pad_token, facts.entry.unk_token) == (
        "<s>",
        "</s>",
        "<pad>",
        "<unk>",
    )
    assert facts.entry.forbidden_ids == (6, 7, 8), "the placeholder and the rows that no token has"
    assert facts.entry.stop_ids == (2,)
    smaller = read_prompt(CheckpointFiles(tmp_path), {}, 6, 9, "", embedding_rows=5).entry.forbidden_ids
    assert smaller == (5, 6, 7, 8), "the rows that the embedding lacks"


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    pieces = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["a", -1.5]]
    tokenizer = {
        "model": {"type": "Unigram", "vocab": pieces},
        "added_tokens": [{"id": 6, "content": "<image>"}],
    }
    facts = read(tmp_path, {"tokenizer.json": tokenizer}, rows=7)
    assert facts.entry.forbidden_ids == (4, 5, 6)


def test_tokens_written_as_objects_and_in_the_other_file(tmp_path: Path) -> None:
    files = {
        "tokenizer_config.json": {"bos_token": {"content": "<s>", "lstrip": False}, "pad_token": None},
        "special_tokens_map.json": {"eos_token": {"content": "</s>"}, "bos_token": "<unk>"},
    }
    facts = read(tmp_path, files)
    assert (facts.entry.bos_token, facts.entry.eos_token, facts.entry.pad_token, facts.entry.unk_token) == (
        "<s>",
        "</s>",
        None,
        None,
    )


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        ({"eos_token_id": [2, 5]}, {"eos_token_id": 3}, (2, 5)),
        ({"eos_token_id": 4}, {}, (4,)),
        ({}, {"text_config": {"eos_token_id": 3}}, (3,)),
        (None, {"eos_token_id": 4, "text_config": {"eos_token_id": None}}, (4,)),
        ({"eos_token_id": None}, {}, (2,)),
        ({"eos_token_id": []}, {}, (2,)),
    ],
)
def test_stop_ids(tmp_path: Path, generation: Any, config: dict[str, Any], stops: tuple[int, ...]) -> None:
    assert read(tmp_path, {"generation_config.json": generation}, config).entry.stop_ids == stops


def test_nothing_ends_an_answer(tmp_path: Path) -> None:
    with refused("stop-token-missing", "eos_token_id", "generation_config.json"):
        read(tmp_path, {"tokenizer_config.json": {"bos_token": "<s>"}})


PLACES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
"""In transformers' order of precedence."""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("with_bos", [True, False])
def test_template_in_each_of_its_places(tmp_path: Path, place: str, with_bos: bool) -> None:
    template = ("{{ bos_token }}" if with_bos else "") + "{{ messages }}"
    content: Any = template if place.endswith(".jinja") else {"chat_template": template}
    if place == "tokenizer_config.json":
        content |= SPECIAL
    facts = read(tmp_path, {place: content})
    assert (facts.template, facts.template_source) == (template, place)


@pytest.mark.parametrize(("first", "second"), list(pairwise(PLACES)))
def test_precedence(tmp_path: Path, first: str, second: str) -> None:
    files = {
        place: place if place.endswith(".jinja") else {**SPECIAL, "chat_template": place}
        for place in (first, second)
    }
    assert read(tmp_path, files).template == first


def test_precedence_is_that_of_transformers(tmp_path: Path) -> None:
    """With a template in each file, the stock processor takes the one that we take."""
    pytest.importorskip("transformers")
    from checkpoints import make_checkpoint
    from transformers import LlavaProcessor

    folder = make_checkpoint(tmp_path / "tiny", template=None, processor_in="processor_config.json")
    for place in reversed(PLACES):
        path = folder / place
        data = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(place if place.endswith(".jinja") else json.dumps({**data, "chat_template": place}))
        processor = LlavaProcessor.from_pretrained(folder, backend="pil")
        stock = processor.chat_template or processor.tokenizer.chat_template
        config = json.loads((folder / "config.json").read_text())
        assert read_prompt(CheckpointFiles(folder), config, 4, 50, "none").template == stock == place


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    assert read(tmp_path, {"tokenizer_config.json": {**SPECIAL, "chat_template": named}}).template == "D"
    mapping = {"rag": "R", "default": "E"}
    assert read(tmp_path, {"tokenizer_config.json": {**SPECIAL, "chat_template": mapping}}).template == "E"


def test_no_template_is_the_family_default(tmp_path: Path) -> None:
    facts = read(tmp_path, {})
    assert (facts.template, facts.template_source) == ("{{ messages }}", "the family's default")


def test_no_tokenizer(tmp_path: Path) -> None:
    with refused("tokenizer-missing", "tokenizer.json"):
        read(tmp_path, {"tokenizer.json": None})


def test_a_placeholder_that_the_tokenizer_does_not_know(tmp_path: Path) -> None:
    with refused("tokenizer-foreign", "config.json", 6, "tokenizer.json"):
        read(tmp_path, {"tokenizer.json": {**TOKENIZER, "added_tokens": []}})


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_broken_json_names_the_file(tmp_path: Path, content: str) -> None:
    with refused("checkpoint-file-invalid", "tokenizer.json"):
        read(tmp_path, {"tokenizer.json": content})
