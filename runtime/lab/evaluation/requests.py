"""Requests of lmms-eval in this runtime's terms: how an answer is decoded, the one image, the records of answers.

Nothing here imports lmms-eval, so that all of it works and is tested without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from divprune_edge.errors import UserError
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.lab.evaluation.dataset import ImageQuestions, LabelledQuestion
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.results import Record

DEFAULT_TOKENS = 256
"""Longest answer where neither the task nor the user says."""

PLACEHOLDER = "<image>"
"""What stands for an image in the texts of lmms-eval, whatever the model."""

_UNDERSTOOD = frozenset(
    (
        "do_sample",
        "max_gen_toks",
        "max_new_tokens",
        "num_beams",
        "repetition_penalty",
        "seed",
        "stop_sequences",
        "temperature",
        "top_k",
        "top_p",
        "until",
    )
)


class RecordStore(Protocol):
    """Where records are kept: a :class:`~divprune_edge.runtime.lab.evaluation.results.Journal`, or a list."""

    records: list[Record]

    def add(self, record: Record) -> None:
        """Keep one more."""
        ...


class Asks(Protocol):
    """What answers: a :class:`~divprune_edge.runtime.lab.evaluation.runner.Runner`."""

    def ask(
        self, image: ImageQuestions, methods: Sequence[EvaluatedMethod], decoding: Decoding | None = None
    ) -> list[Record]:
        """Return one record per method."""
        ...


@dataclass(frozen=True)
class Request:
    """One ``generate_until`` request.

    Attributes:
        name: tells it from all other requests of a run: task, split and document.
        text: the question as the task words it.
        settings: the task's generation settings (``max_new_tokens``, ``until``, …).
        visuals: what the document shows; fetched when it is needed.
        seed: of the sampling, where the task samples.
    """

    name: str
    text: str
    settings: Mapping[str, Any]
    visuals: Callable[[], Sequence[object] | None]
    seed: int = 0


@dataclass
class AnswerMemory:
    """A recorder that forgets with the process."""

    records: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Keep one more."""
        self.records.append(record)


class Answers:
    """Answers requests, each with all methods at once, so that the encoder runs once and all see the same conditions.

    Args:
        runner: answers.
        methods: all that will be asked for.
        recorder: what was answered before is not asked again.
        max_tokens: longest answer, whatever the task says.
        on_asked: told how many requests were asked or found, of how many.
    """

    def __init__(
        self,
        runner: Asks,
        methods: Sequence[EvaluatedMethod],
        recorder: RecordStore,
        max_tokens: int | None = None,
        on_asked: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._runner, self._methods, self._recorder = runner, list(methods), recorder
        self._max_tokens, self._on_asked = max_tokens, on_asked
        self._known = {(r.image, r.asked, r.method): r for r in recorder.records}
        self._warm = False
        self.ignored: set[str] = set()

    def of(self, requests: Sequence[Request], method: EvaluatedMethod) -> list[Record]:
        """Return the records of ``method``, one per request.

        Raises:
            UserError: a request that the runtime cannot answer; the message names the document.
        """
        records = []
        for number, request in enumerate(requests, start=1):
            decoding, ignored = decoding_of(request.settings, self._max_tokens, request.seed, request.name)
            self.ignored |= ignored
            # The settings are part of what was asked: they take the place of the question's type.
            question = LabelledQuestion(request.text, (), repr(decoding))
            image = ImageQuestions(request.name, _opener(request), (question,))
            records.append(self._one(image, decoding, method))
            self._on_asked(number, len(requests))
        return records

    def _one(self, image: ImageQuestions, decoding: Decoding, method: EvaluatedMethod) -> Record:
        missing = [m for m in self._methods if (image.name, image.digest, m.id) not in self._known]
        if missing and not self._warm:
            self._runner.ask(image, missing, decoding)  # the first run of a session is slower than the rest
            self._warm = True
        if missing:
            for record in self._runner.ask(image, missing, decoding):
                self._recorder.add(record)
                self._known[record.image, record.asked, record.method] = record
        return self._known[image.name, image.digest, method.id]


def decoding_of(
    settings: Mapping[str, Any], max_tokens: int | None, seed: int, where: str
) -> tuple[Decoding, set[str]]:
    """Return a task's generation settings as a :class:`Decoding`, and the names of those without a meaning here.

    Greedy unless the task asks for a temperature above 0 (or ``do_sample`` without one, which is 1), and where
    ``do_sample`` is false whatever the temperature.

    Raises:
        UserError: several beams, or a value outside its range.
    """
    beams = settings.get("num_beams") or 1
    if beams != 1:
        raise UserError(
            f"'{where}' asks for {beams} beams, expected 1: beam search is not part of this runtime, choose "
            "another task.",
            code="task-unsupported",
        )
    sample = settings.get("do_sample")
    heat = settings.get("temperature")
    temperature = 0.0 if sample is False else float(heat if heat is not None else bool(sample))
    drawn = (
        {
            "top_p": float(settings.get("top_p") or 1.0),
            "top_k": int(settings.get("top_k") or 0),
            "seed": int(settings.get("seed") or 0) + seed,
        }
        if temperature > 0
        else {}
    )
    longest = max_tokens or settings.get("max_new_tokens") or settings.get("max_gen_toks") or DEFAULT_TOKENS
    return Decoding(
        max_tokens=int(longest),
        temperature=temperature,
        stop=(*_texts(settings.get("until")), *_texts(settings.get("stop_sequences"))),
        repetition_penalty=float(settings.get("repetition_penalty") or 1.0),
        **drawn,  # type: ignore[arg-type]
    ), set(settings) - _UNDERSTOOD


def without_placeholder(text: str, where: str) -> str:
    """Return a question without the placeholder that some tasks put in front of it: the chat template has its own.

    Raises:
        UserError: a placeholder elsewhere in the text; the image would not be where the task wants it.
    """
    asked = text.lstrip()
    if asked.startswith(PLACEHOLDER):
        text = asked.removeprefix(PLACEHOLDER).lstrip()
    if PLACEHOLDER in text:
        raise UserError(
            f"'{where}' puts an image inside its text, expected in front of it: choose a task with one image per "
            "question.",
            code="task-unsupported",
        )
    return text


def _texts(given: object) -> tuple[str, ...]:
    listed = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else []
    return tuple(text for text in listed if isinstance(text, str) and text)


def _opener(request: Request) -> Callable[[], Image.Image]:
    def open_image() -> Image.Image:
        visuals = list(request.visuals() or [])
        if len(visuals) != 1:
            raise UserError(
                f"'{request.name}' shows {len(visuals)} images, expected one: choose a task with one image "
                "per question.",
                code="task-unsupported",
            )
        if not isinstance(visuals[0], Image.Image):
            raise UserError(
                f"'{request.name}' shows a {type(visuals[0]).__name__} (a video or a sound), expected an image: "
                "choose a task with one image per question.",
                code="task-unsupported",
            )
        return visuals[0]

    return open_image
