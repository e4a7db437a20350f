"""Added tokens from every file of a checkpoint: ids and flags are those of transformers' AutoTokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raising import refused
from tokenizer_kinds import byte_level
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from divprune_edge.export.tokenizer import read_tokenizer
from divprune_edge.models.files import CheckpointFiles

NEXT = byte_level().get_vocab_size()
"""The id after those of ``<loc>``-less tokenizer.json; ``<loc>`` itself has it."""
FLAGS = {"lstrip": True, "rstrip": True, "single_word": False}
LATE = {"content": "<late>", **FLAGS, "normalized": False, "special": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<loc>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(folder: Path, config: dict[str, Any], **files: Any) -> CheckpointFiles:
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**common, **config}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return CheckpointFiles(folder)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "added_tokens.json": ({}, {"added_tokens": {"<late>": NEXT + 1}}),
    "added_tokens.json, named": ({"eos_token": "<late>"}, {"added_tokens": {"<late>": NEXT + 1}}),
    "added_tokens_decoder": ({"added_tokens_decoder": {str(NEXT + 1): LATE}}, {}),
    "added_tokens_decoder outranks": (
        {"added_tokens_decoder": {str(NEXT + 1): LATE}},
        {"added_tokens": {"<never>": NEXT + 1}},
    ),
    "other flags": ({"added_tokens_decoder": {str(NEXT): {**LATE, "content": "<loc>"}}}, {}),
    "two out of order": (
        {"added_tokens_decoder": {str(NEXT + 2): {**LATE, "content": "<later>"}, str(NEXT + 1): LATE}},
        {},
    ),
    "a word that is a name": ({"eos_token": "<loc>"}, {}),
    "a word that is a name, in the decoder": (
        {
            "eos_token": "<loc>",
            "added_tokens_decoder": {
                str(NEXT): {"content": "<loc>", **FLAGS, "normalized": True, "special": False}
            },
        },
        {},
    ),
    "names without an id": ({"pad_token": "<pad>", "image_token": "<late>"}, {}),
    "extra special tokens": ({"extra_special_tokens": {"image_token": "<late>", "word": "<loc>"}}, {}),
    "additional special tokens": ({"additional_special_tokens": ["<loc>", "<late>"]}, {}),
    "special_tokens_map.json": (
        {},
        {
            "special_tokens_map": {"pad_token": {"content": "<late>", "lstrip": True, "normalized": False}},
            "added_tokens": {"<late>": NEXT + 1},
        },
    ),
}
TEXTS = ("a <late> <loc> the", "<late><loc>", " the  <loc>  <later> <pad> a", "<LATE> <Loc>")


@pytest.mark.parametrize("case", list(CASES))
def test_equals_transformers(folder: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    config, files = CASES[case]
    read = read_tokenizer(write(folder, config, **files))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    mine = Library.from_str(read.text)
    for token, i in read.added_ids().items():
        assert mine.token_to_id(token) == reference.convert_tokens_to_ids(token) == i
    assert str(mine.get_added_tokens_decoder()) == str(reference.added_tokens_decoder)
    for text in TEXTS:
        assert mine.encode(text).ids == reference(text)["input_ids"], text
    assert read.changed == (case != "nothing")


def test_named_tokens_without_an_id_are_remembered(folder: Path) -> None:
    assert read_tokenizer(write(folder, {"pad_token": "<pad>"})).invented == {"<pad>"}


@pytest.mark.parametrize(
    ("files", "stated", "token"),
    [
        (({"added_tokens_decoder": {str(NEXT + 5): LATE}}, {}), NEXT + 5, "<late>"),
        (({}, {"added_tokens": {"<late>": NEXT + 5}}), NEXT + 5, "<late>"),
        (({"added_tokens_decoder": {str(NEXT + 1): {**LATE, "content": "<loc>"}}}, {}), NEXT + 1, "<loc>"),
    ],
)
def test_other_ids_than_the_tokenizer_gives_are_refused(
    folder: Path, files: Any, stated: int, token: str
) -> None:
    with refused("tokenizer-files-disagree", f"id {stated}", f"'{token}'", "tokenizer.json"):
        read_tokenizer(write(folder, files[0], **files[1]))
