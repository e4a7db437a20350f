"""The generation loop: prefill, then sample, stream and decode until something ends each answer.

There is one loop, for any number of sequences; a single question is one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError, UserTypeError, did_you_mean
from divprune_edge.ids import MOST_IDS
from divprune_edge.processing.detokenize import Detokenizer
from divprune_edge.processing.stop import StopStrings
from divprune_edge.runtime.sampling import Sampler

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from divprune_edge.manifest import Manifest
    from divprune_edge.processing.layout import PromptIds
    from divprune_edge.runtime.backends import LanguageSession, Prediction

OnText = Callable[[str], None]
FinishReason = Literal["stop", "stop_string", "length", "context"]
"""A stop id, a stop string, ``max_tokens``, or the end of the model's context."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded.

    ``temperature`` 0 is greedy. ``stop`` are strings that end the answer and are not part of it; one that is a
    special token, which no text shows, ends it by its id. ``stop_ids`` are ids that end it beside the bundle's own.
    ``ignore_eos`` goes on past the bundle's stop ids. ``prefill_chunk`` feeds the prompt in pieces of so many ids
    (less memory, same result). ``top_k`` draws from so many most likely ids only (0: all);
    ``repetition_penalty`` above 1 makes ids of the question and the answer less likely to come again.

    Raises:
        UserError: a value outside its range; a UserTypeError: one of another type.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    prefill_chunk: int | None = None
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop_ids: Sequence[int] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Decoding:
        """Return what keywords say.

        Raises:
            UserTypeError: there is no option of a name; the closest one is suggested.
            UserError: as for the class.
        """
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise UserTypeError(
                    f"There is no argument '{name}'{did_you_mean(name, known)}: known are {', '.join(known)}.",
                    code="argument-unknown",
                )
        return cls(**given)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not field.name.startswith("stop"):
                check_type(field.name, getattr(self, field.name), str(field.type))
        endless = float("inf")
        for name, fits, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < endless, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("seed", self.seed is None or self.seed >= 0, "0 or more"),
            ("prefill_chunk", self.prefill_chunk is None or self.prefill_chunk >= 1, "at least 1"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < endless, "more than 0 (1 is none)"),
        ):
            if not fits:
                raise UserError(
                    f"{name} is {getattr(self, name)}, expected {expected}.", code="decoding-out-of-range"
                )
        self._check_stops()

    def _check_stops(self) -> None:
        if isinstance(self.stop, str):
            raise UserError(
                f"stop is the text '{self.stop}', expected a tuple of texts: ('{self.stop}',).",
                code="stop-invalid",
            )
        if not isinstance(self.stop, Sequence) or not all(isinstance(text, str) for text in self.stop):
            raise wrong_type("stop", self.stop, "a tuple of texts")
        if "" in self.stop:
            raise UserError(
                "A stop string is empty: leave it out or name the text that ends the answer.",
                code="stop-invalid",
            )
        if isinstance(self.stop_ids, int):
            raise UserError(
                f"stop_ids is {self.stop_ids}, expected a tuple of ids: ({self.stop_ids},).", code="stop-id"
            )
        if not isinstance(self.stop_ids, Sequence) or not all(isinstance(i, int) for i in self.stop_ids):
            raise wrong_type("stop_ids", self.stop_ids, "a tuple of ids")
        for i in self.stop_ids:
            if not 0 <= i < MOST_IDS:
                below = "below 0" if i < 0 else "above all"
                raise UserError(f"Stop id {i} is {below}: give the id of a token.", code="stop-id")

    def sampler(self, forbidden: Sequence[int], *, half: bool = False) -> Sampler:
        """Return a fresh sampler that never draws an id of ``forbidden``; ``half``: of a float16 model."""
        return Sampler(
            self.temperature, self.top_p, self.seed, forbidden, self.top_k, self.repetition_penalty, half=half
        )


@dataclass(frozen=True)
class Generation:
    """An answer's ids (the stop id included, if one ended it), its text, and the times in milliseconds.

    ``prefill_ms`` lasts until the first id is sampled.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_ms: float
    decode_ms: float


class Writer:
    """One answer in the making: takes the prediction of its next id until something ends it.

    Args:
        prompt: the whole conversation.
        detokenizer: a fresh one.
        sampler: a fresh one, of this answer alone.
        decoding: limits and stop strings.
        stop_ids: ids that end an answer.
        context: tokens of one sequence, prompt and answer together.
        places: positions that a token may have, as many where nothing else is said.
        on_text: gets the text piece by piece as soon as it is certain.

    Raises:
        UserError: a stop id that no token has, or a stop string that holds a special token among other text.
    """

    def __init__(
        self,
        prompt: PromptIds,
        detokenizer: Detokenizer,
        sampler: Sampler,
        decoding: Decoding,
        *,
        stop_ids: frozenset[int],
        context: int,
        places: int | None = None,
        on_text: OnText | None = None,
    ) -> None:
        self.prompt, self.decoding = prompt, decoding
        self._detokenizer, self._sampler, self._on_text = detokenizer, sampler, on_text
        own = frozenset[int]() if decoding.ignore_eos else stop_ids
        self._stop_ids = own.union(detokenizer.known(decoding.stop_ids))
        self._stop_tokens = detokenizer.stop_tokens(decoding.stop)
        self._stops = StopStrings(decoding.stop)
        placed = (context if places is None else places) - prompt.next_position
        self._limit = min(decoding.max_tokens, context - len(prompt), placed)
        self._at_limit: FinishReason = "length" if self._limit == decoding.max_tokens else "context"
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._reason: FinishReason | None = None
        self._error: UserError | None = None
        self._started = self._prefilled = self._ended = time.perf_counter()
        sampler.see(prompt.ids)

    @property
    def ended(self) -> bool:
        """Whether the answer is whole, or there will be none."""
        return self._reason is not None or self._error is not None

    @property
    def next(self) -> tuple[int, int]:
        """The id to feed for the next logits, and its position."""
        return self._ids[-1], self.prompt.next_position + len(self._ids) - 1

    def take(self, prediction: Prediction) -> None:
        """Sample an id and pass on the text that it makes certain."""
        token = self._sampler.next(prediction)
        if not self._ids:
            self._prefilled = time.perf_counter()
        self._ids.append(token)
        if token in self._stop_ids:
            self._end("stop")
            return
        if token in self._stop_tokens:
            self._end("stop_string")
            return
        self._emit(self._stops.push(self._detokenizer.push(token)))
        if self._stops.found():
            self._end("stop_string")
        elif len(self._ids) == self._limit:
            self._end(self._at_limit)

    @contextmanager
    def by_itself(self) -> Iterator[None]:
        """Let a mistake end this answer, and none that is written beside it."""
        try:
            yield
        except UserError as error:
            self._error = error

    def result(self) -> Generation:
        """Return the answer, which has ended.

        Raises:
            UserError: there is none.
        """
        if self._error is not None:
            raise self._error
        assert self._reason is not None
        return Generation(
            "".join(self._pieces),
            tuple(self._ids),
            self._reason,
            (self._prefilled - self._started) * 1000,
            (self._ended - self._prefilled) * 1000,
        )

    def _end(self, reason: FinishReason) -> None:
        if not self._stops.found():
            self._emit(self._stops.push(self._detokenizer.finish()))
            self._emit(self._stops.finish())
        self._reason = "stop_string" if self._stops.found() else reason
        self._ended = time.perf_counter()

    def _emit(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            if self._on_text is not None:
                self._on_text(text)


def new_writer(
    manifest: Manifest,
    tokenizer: Tokenizer,
    prompt: PromptIds,
    decoding: Decoding,
    on_text: OnText | None = None,
) -> Writer:
    """Begin an answer of a bundle's language model to ``prompt``."""
    facts, language = manifest.prompt, manifest.language_model
    return Writer(
        prompt,
        Detokenizer(tokenizer),
        decoding.sampler(facts.forbidden_ids, half=language.cache_dtype == "float16"),
        decoding,
        stop_ids=frozenset(facts.stop_ids),
        context=len(prompt) + max(1, language.room_for_answer(len(prompt), prompt.images)),
        places=language.context,
        on_text=on_text,
    )


def write(session: LanguageSession, writers: Mapping[int, Writer]) -> None:
    """Run the loop until every answer is whole, or has failed by itself; see :meth:`Writer.result`.

    Prompts are fed one after the other; then each step feeds an id to every sequence whose answer goes on.

    Args:
        session: the language model.
        writers: slot -> its answer; the slot holds the first ids of the prompt already, as many as it has rows.
    """
    for slot, writer in writers.items():
        prompt, known = writer.prompt, session.length(slot)
        chunk = writer.decoding.prefill_chunk
        ids, places = prompt.ids[known:], prompt.positions[..., known:]
        with writer.by_itself():
            writer.take(session.extend(slot, ids, places, chunk, prompt.images))
    while going := _going(session, writers):
        tokens, positions = ({slot: w.next[at] for slot, w in going.items()} for at in range(2))
        for slot, prediction in session.step(tokens, positions).items():
            with going[slot].by_itself():
                going[slot].take(prediction)


def _going(session: LanguageSession, writers: Mapping[int, Writer]) -> dict[int, Writer]:
    """Return those that go on, each of which the session has room for."""
    for slot, writer in writers.items():
        if not writer.ended:
            with writer.by_itself():
                session.check_room(slot, 1)
    return {slot: writer for slot, writer in writers.items() if not writer.ended}
