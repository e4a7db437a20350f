"""The generation loop on a language model that says what it is told to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from raising import refused
from tokenizers import Tokenizer

from divprune_edge.processing.detokenize import Detokenizer
from divprune_edge.processing.layout import lay_out
from divprune_edge.runtime.backends import Prediction
from divprune_edge.runtime.generate import Decoding, Generation, Writer, write
from divprune_edge.runtime.sampling import Sampler

STOP = 2


class Script:
    """A session of one slot that answers with given ids, one per call, and remembers what it was fed."""

    def __init__(self, ids: Sequence[int], length: int = 0) -> None:
        self._ids = iter(ids)
        self._length = length
        self.fed: list[tuple[int, ...]] = []
        self.positions: list[int] = []

    def length(self, slot: int) -> int:
        return self._length

    def extend(
        self,
        slot: int,
        ids: Sequence[int],
        positions: Sequence[int],
        chunk: int | None,
        images: Sequence[int] = (),
    ) -> Prediction:
        self.fed.append(tuple(ids))
        self.positions.extend(positions)
        self._length += len(ids)
        logits = np.zeros(400, np.float32)
        logits[next(self._ids)] = 1
        return Prediction(None, lambda: logits)

    def check_room(self, slot: int, count: int) -> None:
        pass

    def step(self, ids: Mapping[int, int], positions: Mapping[int, int]) -> dict[int, Prediction]:
        return {slot: self.extend(slot, [ids[slot]], [positions[slot]], None) for slot in ids}


def run(
    tokenizer: Tokenizer, session: Script, context: int = 100, **options: object
) -> tuple[Generation, list[str]]:
    pieces: list[str] = []
    writer = Writer(
        lay_out((1, 5, 6, 7), {999}, [], 400),
        Detokenizer(tokenizer),
        Sampler(),
        Decoding(**options),  # type: ignore[arg-type]
        stop_ids=frozenset({STOP}),
        context=context,
        on_text=pieces.append,
    )
    write(session, {0: writer})  # type: ignore[arg-type]
    result = writer.result()
    assert "".join(pieces) == result.text
    return result, pieces


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_stop_id_ends_the_answer_and_is_reported(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "the a")
    session = Script([*ids, STOP])
    result, _ = run(tokenizer, session)
    assert result.token_ids == (*ids, STOP)
    assert result.text == tokenizer.decode(ids)
    assert result.finish_reason == "stop"
    assert session.fed == [(1, 5, 6, 7), *((i,) for i in ids)]
    assert session.positions == list(range(4 + len(ids)))


def test_only_what_the_cache_lacks_is_fed(tokenizer: Tokenizer) -> None:
    session = Script([STOP], length=3)
    run(tokenizer, session)
    assert session.fed == [(7,)]


def test_limits(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "the the the the the the")
    assert run(tokenizer, Script(ids), max_tokens=3)[0].finish_reason == "length"
    result, _ = run(tokenizer, Script(ids), context=6)
    assert (len(result.token_ids), result.finish_reason) == (2, "context")
    result, _ = run(tokenizer, Script([STOP, STOP, *ids]), max_tokens=5, ignore_eos=True)
    assert (len(result.token_ids), result.finish_reason) == (5, "length")


def test_stop_string_spans_tokens_and_is_not_part_of_the_answer(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "what is in the a")
    result, pieces = run(tokenizer, Script([*ids, STOP]), stop=("is in",))
    assert result.text.strip() == "what"
    assert result.finish_reason == "stop_string"
    assert len(result.token_ids) < len(ids)
    assert not any("is" in piece for piece in pieces)


def test_text_held_for_a_stop_string_comes_at_the_end(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "what is in")
    result, _ = run(tokenizer, Script([*ids, STOP]), stop=("in the",))
    assert result.text == tokenizer.decode(ids)
    assert result.finish_reason == "stop"


def test_unfinished_character_comes_at_the_end(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "the €")
    result, _ = run(tokenizer, Script(ids), max_tokens=len(ids) - 1)
    assert result.text == tokenizer.decode(ids[:-1])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("seed", -1),
        ("stop", ("a", "")),
        ("stop", "END"),
        ("prefill_chunk", 0),
    ],
)
def test_options_outside_their_range_are_refused(option: str, value: object) -> None:
    with refused("stop-invalid" if option == "stop" else "decoding-out-of-range") as error:
        Decoding(**{option: value})  # type: ignore[arg-type]
    assert option in str(error.value).lower()


IMAGE = 3
"""A special token that is not the script's stop id."""


@pytest.mark.parametrize("stop", ["<image>", "<image>\n"])
def test_a_stop_string_that_is_a_special_token(tokenizer: Tokenizer, stop: str) -> None:
    ids = encode(tokenizer, "the a")
    result, _ = run(tokenizer, Script([*ids, IMAGE, *ids]), stop=("END", stop))
    assert (result.token_ids, result.finish_reason) == ((*ids, IMAGE), "stop_string")
    assert result.text == tokenizer.decode(ids)


def test_one_that_the_answer_spells_out(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "the <a> the")
    result, _ = run(tokenizer, Script([*ids, STOP]), stop=("<image>", tokenizer.decode(ids)[4:]))
    assert result.finish_reason == "stop_string"


def test_a_special_token_among_other_text_is_refused(tokenizer: Tokenizer) -> None:
    with refused("stop-string-special-token", "'a<image>'", "'<image>'"):
        run(tokenizer, Script([STOP]), stop=("a<image>",))


def test_stop_ids_beside_the_bundles_own(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "the a the")
    for stops in ((IMAGE, ids[2]), (IMAGE,)):
        result, _ = run(tokenizer, Script([ids[0], IMAGE, *ids]), stop_ids=stops, ignore_eos=True)
        assert (result.token_ids[-1] in stops, result.finish_reason) == (True, "stop")
    result, _ = run(tokenizer, Script([ids[0], STOP]), stop_ids=(IMAGE,))
    assert result.token_ids == (ids[0], STOP)


@pytest.mark.parametrize(("ids", "shown"), [((-1,), "id -1"), (5, "(5,)")])
def test_stop_ids_that_are_none(ids: Any, shown: str) -> None:
    with refused("stop-id", shown):
        Decoding(stop_ids=ids)


def test_a_stop_id_that_no_token_has(tokenizer: Tokenizer) -> None:
    with refused("stop-id", 99999):
        run(tokenizer, Script([STOP]), stop_ids=(99999,))
