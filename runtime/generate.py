"""The generation loop: prefill, then sample, stream and decode until something ends the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from divprune_edge.errors import UserError
from divprune_edge.runtime.stop import StopStrings

if TYPE_CHECKING:
    from divprune_edge.runtime.backends.base import LanguageSession
    from divprune_edge.runtime.detokenize import Detokenizer
    from divprune_edge.runtime.prompt import PromptIds
    from divprune_edge.runtime.sampling import Sampler

FinishReason = Literal["stop", "stop_string", "length", "context"]
"""A stop id, a stop string, ``max_tokens``, or the end of the model's context."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is decoded.

    ``temperature`` 0 is greedy. ``stop`` are strings that end the answer and are not part of it.
    ``ignore_eos`` goes on past the stop ids. ``prefill_chunk`` feeds the prompt in pieces of so many ids
    (less memory, same result). ``top_k`` draws from so many most likely ids only (0: all);
    ``repetition_penalty`` above 1 makes ids of the question and the answer less likely to come again.

    Raises:
        UserError: a value outside its range.
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

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens is {self.max_tokens}, expected at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}, expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}, expected more than 0 and at most 1.")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"seed is {self.seed}, expected 0 or more.")
        if isinstance(self.stop, str):
            raise UserError(f"stop is the text '{self.stop}', expected a tuple of texts: ('{self.stop}',).")
        if "" in self.stop:
            raise UserError("A stop string is empty: leave it out or name the text that ends the answer.")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise UserError(f"prefill_chunk is {self.prefill_chunk}, expected at least 1.")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}, expected 0 (all) or more.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}, expected more than 0 (1 is none)."
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


def generate(
    session: LanguageSession,
    prompt: PromptIds,
    detokenizer: Detokenizer,
    sampler: Sampler,
    decoding: Decoding,
    *,
    stop_ids: frozenset[int],
    context: int,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Answer ``prompt`` on ``session``, whose cache already holds the first ``session.length`` ids of it.

    Args:
        session: the language model.
        prompt: the whole conversation; only what the cache lacks is fed.
        detokenizer: a fresh one.
        sampler: picks the next id.
        decoding: limits and stop strings.
        stop_ids: ids that end an answer.
        context: positions of one sequence, prompt and answer together.
        on_text: gets the text piece by piece as soon as it is certain.
    """
    stops = StopStrings(decoding.stop)
    pieces: list[str] = []
    ids: list[int] = []

    def emit(text: str) -> None:
        if text:
            pieces.append(text)
            if on_text is not None:
                on_text(text)

    limit = min(decoding.max_tokens, context - len(prompt))
    reason: FinishReason = "length" if limit == decoding.max_tokens else "context"
    sampler.see(prompt.ids)
    started = time.perf_counter()
    token = sampler(session.extend(prompt.ids[session.length :], decoding.prefill_chunk))
    prefilled = time.perf_counter()
    while True:
        ids.append(token)
        if token in stop_ids and not decoding.ignore_eos:
            reason = "stop"
            break
        emit(stops.push(detokenizer.push(token)))
        if stops.found():
            reason = "stop_string"
            break
        if len(ids) == limit:
            break
        token = sampler(session.extend((token,)))
    if not stops.found():
        emit(stops.push(detokenizer.finish()))
        emit(stops.finish())
        if stops.found():
            reason = "stop_string"
    done = time.perf_counter()
    return Generation(
        "".join(pieces), tuple(ids), reason, (prefilled - started) * 1000, (done - prefilled) * 1000
    )
