"""BOS is added once, and words that look like special tokens can stay words."""

from __future__ import annotations

from pathlib import Path

import pytest
from raising import refused
from tokenizers import Tokenizer

from divprune_edge.processing.tokenizer import PromptTokenizer, stand_in, without_stand_ins


@pytest.fixture
def subject(tokenizer: Tokenizer, tmp_path: Path) -> PromptTokenizer:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return PromptTokenizer(tmp_path / "tokenizer.json", "<s>")


def test_bos_is_added_unless_the_text_brings_it(subject: PromptTokenizer) -> None:
    for ids in (subject.encode("what is"), subject.encode("<s>what is")):
        assert ids.count(1) == 1
        assert ids[0] == 1


def test_special_tokens_are_noticed(subject: PromptTokenizer) -> None:
    assert subject.holds_special("is <image> in")
    assert subject.holds_special("is <IMAGE> in")
    assert not subject.holds_special("is < image > in")


@pytest.mark.parametrize("template", ["user: <image>\n{}\nuser:", "<s>{}</s><image>{}", "{} the <image>{}"])
@pytest.mark.parametrize("text", ["what is in the", " the a ", "éa\nthe"])
def test_plain_parts_without_special_tokens_change_nothing(
    subject: PromptTokenizer, template: str, text: str
) -> None:
    marks = [stand_in(i) for i in range(template.count("{}"))]
    ids = subject.encode_with_plain(template.format(*marks), dict.fromkeys(marks, text))
    assert ids == subject.encode(template.format(*[text] * len(marks)))


@pytest.mark.parametrize("text", ["<image>", "a </s> the <image>", "<s><unk>", "<<image>>"])
def test_plain_parts_never_become_special(subject: PromptTokenizer, text: str) -> None:
    ids = subject.encode_with_plain(f"a <image> {stand_in(0)}", {stand_in(0): text})
    assert ids.count(3) == 1
    assert ids.count(2) == 0
    assert ids.count(1) == 1


def test_a_plain_part_is_written_out(subject: PromptTokenizer) -> None:
    ids = subject.encode_with_plain(f"the {stand_in(0)}", {stand_in(0): "<image>"})
    assert subject.model.decode(ids, skip_special_tokens=False).replace(" ", "").endswith("the<image>")


def test_a_text_with_the_stand_ins_own_mark(subject: PromptTokenizer) -> None:
    text = without_stand_ins(f"a {stand_in(0)} <image>")
    assert stand_in(0) not in text
    assert subject.holds_special(stand_in(0))
    ids = subject.encode_with_plain(f"<image>{stand_in(0)}", {stand_in(0): text})
    assert ids.count(3) == 1


def test_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with refused("tokenizer-unreadable"):
        PromptTokenizer(tmp_path / "tokenizer.json", None)
