"""Streaming never splits a character and adds up to the decoding of the whole."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from divprune_edge.processing.detokenize import Detokenizer

TEXTS = ["the the a", "é€😀 the", " the\n\n", "日本語 the 🏳️‍🌈!", "", "a  b"]


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ids_add_up(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # Any ids at all: broken characters, special tokens between bytes, spaces only.
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=24))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_text_arrives_as_soon_as_it_is_certain(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the a the a", add_special_tokens=False).ids
    pieces = stream(tokenizer, ids)
    assert pieces[-1] == ""
    assert sum(bool(piece.strip()) for piece in pieces) >= 4
