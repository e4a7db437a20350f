"""Results of an evaluation: one line per image and method, written as they come, read to go on or to report."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.runtime.lab.evaluation.dataset import Dataset
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.scoring import wilson
from divprune_edge.scratch import scratch
from divprune_edge.strict_json import parse_json

RECORDS = "records.jsonl"
_FACTS = {
    "bundle": "bundle",
    "data": "question set",
    "backend": "--backend",
    "threads": "number of --threads",
    "max_tokens": "--max-tokens",
}


@dataclass(frozen=True)
class Record:
    """All questions about one image with one method; lists run over the questions, times are milliseconds.

    ``asked`` is the digest of the questions. ``ttft_ms`` lasts from the image's file to the first token:
    preprocessing, encoder, selector and prefill. ``visual_tokens`` were kept of the image's ``candidates``; None in
    records of older versions.
    """

    image: str
    asked: str
    method: str
    answers: list[str]
    right: list[bool]
    ttft_ms: list[float]
    total_ms: list[float]
    timings_ms: dict[str, float]
    coverage: float
    smallest: float
    visual_tokens: int | None = None
    candidates: int | None = None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while ``path`` is written into one sentence.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror}): choose another --output.",
            code="output-unwritable",
        ) from None


class Journal:
    """The file of records: appended to line by line, so that an interrupted run keeps what it has.

    Raises:
        UserError: the file holds results of another evaluation, or cannot be written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._path = folder / RECORDS
        self.records: list[Record] = []
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists():
                self._resume(facts)
            else:
                write_whole(self._path, _line(facts))

    def _resume(self, facts: dict[str, Any]) -> None:
        written = self._path.read_bytes()
        # A line that was being written when the run ended is lost.
        whole = written[: written.rfind(b"\n") + 1]
        lines = whole.splitlines()  # of bytes: of a text, other characters would end lines as well
        if not lines:  # not even the first one was written
            write_whole(self._path, _line(facts))
            return
        try:
            if (of := parse_json(lines[0].decode())) != (now := json.loads(json.dumps(facts))):
                others = [words for name, words in _FACTS.items() if of.get(name) != now.get(name)]
                raise UserError(
                    f"'{self._path}' holds results with another {' and another '.join(others) or 'form'}: choose "
                    "another --output, or delete it.",
                    code="results-of-another-run",
                )
            records = [Record(**parse_json(line.decode())) for line in lines[1:]]
            # Each once: two runs at a time, which older versions let write here, asked the same.
            self.records = [*{(r.image, r.asked, r.method): r for r in reversed(records)}.values()][::-1]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"'{self._path}' is damaged ({error}): delete it to begin again.", code="results-damaged"
            ) from None
        if whole != written:
            os.truncate(self._path, len(whole))

    def add(self, record: Record) -> None:
        """Write one record; it is on disk when this returns.

        Raises:
            UserError: it cannot be written, for want of rights or of room.
        """
        with writing(self._path):
            self._append(asdict(record))
        self.records.append(record)

    def _append(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(entry))

    def done(self, data: Dataset) -> set[tuple[str, str]]:
        """Return (image, method) of every record about the questions of ``data``."""
        asked = {image.name: image.digest for image in data.images}
        return {(r.image, r.method) for r in self.records if asked.get(r.image) == r.asked}


@contextmanager
def journal_in(folder: Path, facts: dict[str, Any]) -> Iterator[Journal]:
    """Open a folder's records, for this process alone.

    Raises:
        UserError: another one writes there, or as :class:`Journal`.
    """
    busy = f"Another evaluation writes to '{folder}' now: wait for it, or choose another --output."
    with ExitStack() as held:
        with writing(folder / RECORDS):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(scratch(folder, RECORDS, busy=busy))
        yield Journal(folder, facts)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Share:
    """Right answers among questions, with the 95 % Wilson interval."""

    right: int
    questions: int

    @property
    def accuracy(self) -> float:
        """The share, 0 of nothing."""
        return self.right / self.questions if self.questions else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return wilson(self.right, self.questions)


@dataclass(frozen=True, kw_only=True)
class MethodFigures:
    """A method, and what was measured of it whatever was asked.

    Times are medians in milliseconds, distances and tokens means over images. ``variant`` tells its bundle from the
    others of one table; None where all are of one bundle.
    """

    method: str
    name: str
    keep: int
    reference: bool
    ttft_ms: float
    total_ms: float
    coverage: float
    smallest: float
    visual_tokens: float | None = None
    candidates: float | None = None
    variant: str | None = None

    @property
    def tokens(self) -> float:
        """Visual tokens that the language model saw of an image."""
        return self.keep if self.visual_tokens is None else self.visual_tokens


def measured(method: EvaluatedMethod, records: Sequence[Record]) -> dict[str, Any]:
    """Return the fields of :class:`MethodFigures` from a method's records."""
    return {
        "method": method.id,
        "name": method.name,
        "keep": method.keep,
        "reference": method.is_reference,
        "ttft_ms": statistics.median(ms for record in records for ms in record.ttft_ms),
        "total_ms": statistics.median(ms for record in records for ms in record.total_ms),
        "coverage": statistics.fmean(record.coverage for record in records),
        "smallest": statistics.fmean(record.smallest for record in records),
        "visual_tokens": _mean(record.visual_tokens for record in records),
        "candidates": _mean(record.candidates for record in records),
    }


@dataclass(frozen=True, kw_only=True)
class Row(MethodFigures):
    """One method over the whole set."""

    all: Share
    kinds: dict[str, Share]
    macro: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, ready for JSON."""
        whole = {name: value for name, value in asdict(self).items() if name != "all"}
        kinds = {kind: _share(share) for kind, share in self.kinds.items()}
        return {**whole, **_share(self.all), "kinds": kinds}


def _share(share: Share) -> dict[str, Any]:
    return {
        "right": share.right,
        "questions": share.questions,
        "accuracy": share.accuracy,
        "interval": list(share.interval),
    }


def _mean(counts: Iterable[int | None]) -> float | None:
    """Return the mean, None where one is not known."""
    known = list(counts)
    return None if None in known else statistics.fmean(count for count in known if count is not None)


def summarise(records: Iterable[Record], methods: Sequence[EvaluatedMethod], data: Dataset) -> list[Row]:
    """Return one row per method that has results, in the order of ``methods``."""
    kinds = {image.name: [question.kind for question in image.questions] for image in data.images}
    asked = {image.name: image.digest for image in data.images}
    by_method: dict[str, list[Record]] = {}
    for record in records:
        if asked.get(record.image) == record.asked:
            by_method.setdefault(record.method, []).append(record)
    rows = []
    for method in methods:
        found = by_method.get(method.id, [])
        counts: dict[str, list[int]] = {}
        for record in found:
            for kind, right in zip(kinds[record.image], record.right, strict=True):
                count = counts.setdefault(kind, [0, 0])
                count[0] += right
                count[1] += 1
        if not counts:
            continue
        shares = {kind: Share(*counts[kind]) for kind in sorted(counts)}
        rows.append(
            Row(
                all=Share(sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())),
                kinds=shares,
                macro=statistics.fmean(share.accuracy for share in shares.values()),
                **measured(method, found),
            )
        )
    return rows
