"""Scores are told with the text of their tokens, and not before it is certain."""

from __future__ import annotations

import numpy as np
from tokenizer_kinds import byte_level

from divprune_edge.runtime.backends import Prediction
from divprune_edge.runtime.serve.scores import TokenScores

TOKENIZER = byte_level()


def added(scores: TokenScores, text: str) -> None:
    logits = np.zeros(TOKENIZER.get_vocab_size(), np.float32)
    for i in TOKENIZER.encode(text, add_special_tokens=False).ids:
        scores.add(i, Prediction(None, lambda: logits))


def test_what_may_be_a_stop_string_is_held() -> None:
    scores = TokenScores(TOKENIZER, 2)
    added(scores, "aa")  # of the stop string "ab"
    assert [one.token for one in scores.take("a", rest=False)] == ["a"]
    added(scores, "b")
    assert scores.take("", rest=False) == ()


def test_parts_of_a_character_are_their_bytes() -> None:
    scores = TokenScores(TOKENIZER, 0)
    added(scores, "é")
    assert scores.take("", rest=False) == ()
    found = scores.take("é", rest=True)
    assert [(one.token, one.data) for one in found] == [("\ufffd", b"\xc3"), ("\ufffd", b"\xa9")]
    assert np.isclose(found[0].logprob, -np.log(TOKENIZER.get_vocab_size())) and found[0].top == ()
