"""The bytes of tokens, joined, are the text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import byte_level, sentencepiece_like
from tokenizers import Tokenizer

from divprune_edge.processing.token_bytes import TokenBytes

TEXTS = ["the the a", " the", "é€😀 the", "the  a\n\nthe", "日本語 the 🏳️‍🌈!", "", "  "]


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[bytes | None]:
    found, tokens = [], TokenBytes(tokenizer)
    for i in ids:
        found.append(tokens.of(i)[1])
        tokens.push(i)
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    joined = b"".join(piece or b"" for piece in pieces(tokenizer, ids))
    assert joined.decode() == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=16))
    joined, text = b"".join(piece or b"" for piece in pieces(tokenizer, ids)), tokenizer.decode(ids)
    # How many U+FFFD stand for bytes that are no text is the decoder's to choose.
    if "\ufffd" not in text:
        assert joined.decode() == text


def test_a_part_of_a_character_is_its_bytes() -> None:
    for tokenizer in (byte_level(), sentencepiece_like()):
        ids = tokenizer.encode("a😀", add_special_tokens=False).ids[-4:]
        assert pieces(tokenizer, ids) == [b"\xf0", b"\x9f", b"\x98", b"\x80"]
        tokens = TokenBytes(tokenizer)
        assert tokens.of(ids[0]) == ("\ufffd", b"\xf0")


def test_a_special_token_has_a_name_and_no_bytes(tokenizer: Tokenizer) -> None:
    assert TokenBytes(tokenizer).of(tokenizer.token_to_id("</s>")) == ("</s>", None)


def test_a_blank_belongs_to_the_token_that_begins_with_it(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("the the", add_special_tokens=False).ids[:2]
    tokens = TokenBytes(tokenizer)
    assert tokens.of(first)[0] == "the"
    tokens.push(first)
    assert tokens.of(second)[0] == " the"
