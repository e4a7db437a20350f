"""A question on its way through the server, and what is told of it meanwhile."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from divprune_edge.errors import DivpruneError

if TYPE_CHECKING:
    from divprune_edge.manifest import SelectorInfo
    from divprune_edge.processing.layout import PromptIds
    from divprune_edge.runtime.generate import Decoding, FinishReason, Writer
    from divprune_edge.runtime.serve.places import Shown
    from divprune_edge.runtime.serve.scores import TokenScore, TokenScores
    from divprune_edge.runtime.vision import VisualTokens


@dataclass(frozen=True)
class Medium:
    """An image, or a clip's frames, as the bytes of their files."""

    frames: tuple[bytes, ...]
    clip: bool = False
    fps: float | None = None

    @cached_property
    def key(self) -> bytes:
        """What two equal ones have in common, and no others: nobody's image is answered from another's cache."""
        digest = hashlib.sha256(f"{self.clip} {self.fps} {[len(frame) for frame in self.frames]} ".encode())
        for frame in self.frames:
            digest.update(frame)
        return digest.digest()


@dataclass(frozen=True)
class Utterance:
    """A message: who says what, about which new images, and then clips."""

    role: str
    text: str
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """A conversation whose last word is the user's, and how to answer it.

    Attributes:
        utterances: the conversation.
        selector: None keeps every visual token.
        decoding: how the answer is decoded.
        logprobs: how many alternatives to report for each token of the answer; None reports nothing.
    """

    utterances: tuple[Utterance, ...]
    selector: SelectorInfo | None
    decoding: Decoding
    logprobs: int | None = None

    @property
    def media(self) -> list[Medium]:
        """All images and clips, in the order in which the prompt has them."""
        return [medium for utterance in self.utterances for medium in utterance.media]

    @property
    def opens(self) -> bool:
        """Whether nothing was answered before."""
        return all(utterance.role != "assistant" for utterance in self.utterances)

    def without_media(self) -> Conversation:
        """Return the question without the bytes of its images, once these were looked at."""
        return replace(self, utterances=tuple(replace(one, media=()) for one in self.utterances))


@dataclass(frozen=True)
class PromptReady:
    """The prompt is ready: how long it is, and what was kept of each image and clip."""

    prompt_tokens: int
    media: tuple[Shown, ...]


@dataclass(frozen=True)
class TextPiece:
    """Some more text; tokens whose text is not certain yet come with a later piece's."""

    text: str
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The answer is whole.

    Attributes:
        reason: why it ends.
        tokens: of the answer.
        reused: tokens of the prompt whose cache was there already.
        timings_ms: ``queue``, ``encode``, ``select``, ``prefill``, ``ttft`` (from the request's arrival to the first
            id), ``decode`` and ``total``.
    """

    reason: FinishReason
    tokens: int
    reused: int
    timings_ms: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """There will be no answer, or no more of it."""

    error: DivpruneError


Event: TypeAlias = PromptReady | TextPiece | Ended | Failed


class Times:
    """When what began and ended."""

    def __init__(self) -> None:
        self.arrived = self._last = time.perf_counter()
        self._first: float | None = None
        self.stages = {"queue": 0.0, "encode": 0.0, "select": 0.0, "prefill": 0.0}

    def lap(self, stage: str) -> None:
        """Count what has passed since the last lap to ``stage``."""
        now = time.perf_counter()
        self.stages[stage] += (now - self._last) * 1000
        self._last = now

    def first(self) -> float:
        """The first id is there; return the seconds since the arrival."""
        self.lap("prefill")
        self._first = self._last
        return self._first - self.arrived

    def report(self) -> dict[str, float]:
        """Return all of them in milliseconds, now that the answer is whole."""
        now = time.perf_counter()
        first = now if self._first is None else self._first
        return {
            **self.stages,
            "ttft": (first - self.arrived) * 1000,
            "decode": (now - first) * 1000,
            "total": (now - self.arrived) * 1000,
        }


@dataclass(eq=False)
class Job:
    """A question that is being answered: threads hand it on to one another, and only one has it at a time.

    Attributes:
        question: what is asked.
        client: who asks, as far as fairness goes.
        deadline: when it has to be answered, on :func:`time.monotonic`'s clock.
        tell: gets the events, from any thread.
        gone: nobody waits for the answer any more.
        prompt: its ids, once they are known, as is what follows.
        marks: where each span of visual tokens begins in them, and what it shows.
        visual: what the ids refer to.
        writer: of the answer.
        slot: of the session.
        fed: ids that the slot's cache holds, of the prompt.
        reused: of these, those that it began with.
        tokens: of the answer.
        pieces: of its text, until they are told.
        scores: of its tokens, where they are asked for.
    """

    question: Conversation
    client: str
    deadline: float
    tell: Callable[[Event], None]
    gone: bool = False
    prompt: PromptIds | None = None
    marks: tuple[tuple[int, bytes], ...] = ()
    visual: VisualTokens | None = None
    writer: Writer | None = None
    slot: int = -1
    fed: int = 0
    reused: int = 0
    tokens: int = 0
    pieces: list[str] = field(default_factory=list)
    scores: TokenScores | None = None
    times: Times = field(default_factory=Times)

    @property
    def prefilled(self) -> bool:
        """Whether its answer has begun."""
        return self.prompt is not None and self.fed == len(self.prompt)

    def fail(self, error: DivpruneError) -> None:
        """Tell that there is no answer."""
        self.tell(Failed(error))
