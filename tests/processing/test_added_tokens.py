"""Added tokens of every kind, in every kind of tokenizer, as in transformers: words act, special ones do not."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from divprune_edge.processing.tokenizer import PromptTokenizer, stand_in

transformers = pytest.importorskip("transformers")

FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
COMBINATIONS = list(product([False, True], repeat=len(FLAGS)))
WORD = "tok7"
QUESTIONS = (
    f"the {WORD} a",
    f"the  {WORD}\n a {WORD}",
    f"a{WORD}the {WORD}",
    f"{WORD}",
    f" {WORD}{WORD} ",
    f"{WORD.upper()} {WORD}.",
    f"<a{WORD}> \u00e9{WORD}?",
)
PLAIN = ("a the", " the ", "a", "\u00e9 a\n")


@pytest.fixture(
    params=COMBINATIONS,
    ids=lambda flags: "-".join(n for n, f in zip(FLAGS, flags, strict=True) if f) or "none",
)
def flags(request: pytest.FixtureRequest) -> dict[str, bool]:
    return dict(zip(FLAGS, request.param, strict=True))


def both(tokenizer: Tokenizer, tokens: list[AddedToken], folder: Path) -> tuple[PromptTokenizer, Any]:
    """Return a copy with ``tokens``, and the same in transformers."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    for token in tokens:
        (copy.add_special_tokens if token.special else copy.add_tokens)([token])
    copy.save(str(folder / "tokenizer.json"))
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>"
    )
    return PromptTokenizer(folder / "tokenizer.json", "<s>", ["<image>"]), reference


def encoded(subject: PromptTokenizer, template: str, *parts: str) -> list[int]:
    marks = [stand_in(i) for i in range(len(parts))]
    return subject.encode_with_plain(template.format(*marks), dict(zip(marks, parts, strict=True)))


def test_in_a_question(tokenizer: Tokenizer, flags: dict[str, bool], tmp_path: Path) -> None:
    subject, reference = both(tokenizer, [AddedToken(WORD, **flags)], tmp_path)
    for question in QUESTIONS:
        assert subject.holds_special(question) == flags["special"]
        for template in ("user: {} user:", "{}", "{} a"):
            text = template.format(question)
            expected = reference(text, split_special_tokens=flags["special"])["input_ids"]
            assert encoded(subject, template, question) == expected, text
            if not flags["special"]:
                assert subject.encode(text) == expected, text


def test_in_a_template(tokenizer: Tokenizer, flags: dict[str, bool], tmp_path: Path) -> None:
    subject, reference = both(tokenizer, [AddedToken(WORD, **flags)], tmp_path)
    for question in PLAIN:
        for template in (f"{WORD}{{}}{WORD}", f"a {WORD} {{}}{WORD}\n <image>{WORD} ", f"<s>{{}} {WORD}"):
            text = template.format(question)
            begun = text.startswith("<s>")
            expected = reference(text, add_special_tokens=not begun)["input_ids"]
            assert subject.encode(text) == expected, text
            assert encoded(subject, template, question) == expected, text


def test_beside_one_another(tokenizer: Tokenizer, flags: dict[str, bool], tmp_path: Path) -> None:
    """A special token of the template between words that are tokens only where they stand alone."""
    single = AddedToken("num", single_word=True, special=False)
    subject, reference = both(tokenizer, [AddedToken(WORD, **flags), single], tmp_path)
    for template in (f"{WORD}{{}} num{WORD}", f"{{}}{WORD} {WORD}num", "num<image>{}"):
        for question in ("num", " num a", "a num"):
            text = template.format(question)
            assert encoded(subject, template, question) == reference(text)["input_ids"], text


def test_a_word_and_a_special_token_in_one_question(tokenizer: Tokenizer, tmp_path: Path) -> None:
    subject, reference = both(tokenizer, [AddedToken(WORD, special=False)], tmp_path)
    ids = encoded(subject, "<image> {}", f"{WORD} <image> {WORD}</s>")
    word = reference.convert_tokens_to_ids(WORD)
    assert (ids.count(word), ids.count(3), ids.count(2)) == (2, 1, 0)


def test_a_word_that_begins_like_a_special_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    words = [AddedToken("<image>s", special=False, normalized=False)]
    subject, reference = both(tokenizer, words, tmp_path)
    for template, question in (("<image>s {}", "a"), ("<image> {}", "<image>s")):
        text = template.format(question)
        assert encoded(subject, template, question) == reference(text)["input_ids"]


def test_the_placeholder_is_special_even_where_the_tokenizer_forgot(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    subject, reference = both(tokenizer, [AddedToken("<picture>", special=False)], tmp_path)
    subject = PromptTokenizer(tmp_path / "tokenizer.json", "<s>", ["<picture>"])
    place = reference.convert_tokens_to_ids("<picture>")
    assert subject.holds_special("a <picture>")
    assert encoded(subject, "<picture> {}", "a <picture>").count(place) == 1


@pytest.mark.parametrize("question", ["\uff1cimage\uff1e", "<IM\u00c1GE>", "<Image>"])
def test_spellings_that_the_normalizer_turns_into_a_special_token(
    tokenizer: Tokenizer, tmp_path: Path, question: str
) -> None:
    lowering = Tokenizer.from_str(tokenizer.to_str())
    lowering.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.BertNormalizer(lowercase=True)]
    )
    subject, _ = both(lowering, [AddedToken("<image>", special=True, normalized=True)], tmp_path)
    assert subject.holds_special(question)
    assert encoded(subject, "<image> {}", question).count(3) == 1


def test_merges_that_make_a_special_token_are_left_out(tmp_path: Path) -> None:
    from tokenizers import models

    model = models.BPE(vocab={"<": 0, "e": 1, ">": 2, "<e": 3, "<e>": 4}, merges=[("<", "e"), ("<e", ">")])
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([AddedToken("<e>", normalized=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert encoded(PromptTokenizer(tmp_path / "tokenizer.json", None), "<e>{}", "<e>") == [4, 3, 2]


def test_a_text_with_every_edge_of_a_name(tokenizer: Tokenizer, tmp_path: Path) -> None:
    subject, reference = both(tokenizer, [], tmp_path)
    question = "\ua500 \ua490 \ua501\ua491"
    assert encoded(subject, "<image>{}", question) == reference(f"<image>{question}")["input_ids"]
