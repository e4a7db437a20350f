"""How likely the model found the tokens of an answer, which joined are its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune_edge.processing.token_bytes import TokenBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from divprune_edge.runtime.backends import Prediction


@dataclass(frozen=True)
class Likely:
    """A token with its bytes in the text, None where no text shows it, and its logarithmic probability."""

    token: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True)
class TokenScore(Likely):
    """A token of an answer, and the likeliest ones in its place."""

    top: tuple[Likely, ...] = ()


class TokenScores:
    """Those of one answer, until they are told with its text; each names ``top`` likeliest tokens beside its own."""

    def __init__(self, tokenizer: Tokenizer, top: int) -> None:
        self._bytes, self._top = TokenBytes(tokenizer), top
        self._held: list[TokenScore] = []
        self._told = 0  # bytes of tokens
        self._text = 0  # bytes of the answer

    def add(self, token: int, prediction: Prediction) -> None:
        """Hold the score of an answer's next id."""
        logits = prediction.logits.astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        # The whole vocabulary is not sorted for a few.
        few = np.argpartition(-logits, range(self._top))[: self._top] if self._top else ()
        named = tuple(Likely(*self._bytes.of(int(i)), float(logits[i])) for i in few)
        self._held.append(TokenScore(*self._bytes.of(token), float(logits[token]), named))
        self._bytes.push(token)

    def take(self, text: str, *, rest: bool) -> tuple[TokenScore, ...]:
        """Return the scores of the tokens that begin in what is told with ``text``, or the ``rest`` as well.

        What is behind it may be the beginning of a stop string, and then no part of the answer.
        """
        self._text += len(text.encode())
        count = 0
        while count < len(self._held) and (rest or self._told < self._text):
            self._told += len(self._held[count].data or b"")
            count += 1
        found = tuple(self._held[:count])
        del self._held[:count]
        return found
