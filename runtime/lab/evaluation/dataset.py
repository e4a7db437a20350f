"""Question sets: the built-in held-out one, and folders of images with a JSONL of questions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.strict_json import JsonError, is_file, is_folder, parse_json, read_text

if TYPE_CHECKING:
    from divprune_edge.processing.sources import ImageSource

DEMO, DEVELOPMENT = "demo", "demo-development"
LMMS = "lmms:"
MOST_BYTES = 256 << 20
"""Of the file of questions: VQAv2's validation set has about 30 MB."""


@dataclass(frozen=True)
class LabelledQuestion:
    """``answers`` are all taken as right; ``kind`` groups questions in the tables."""

    text: str
    answers: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class ImageQuestions:
    """An image, opened when it is needed, and the questions about it."""

    name: str
    open: Callable[[], ImageSource]
    questions: tuple[LabelledQuestion, ...]

    @property
    def digest(self) -> str:
        """What tells the same image with other questions apart, so that results are never mixed."""
        facts = [[q.text, q.answers, q.kind] for q in self.questions]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Dataset:
    """Images with their questions."""

    name: str
    images: tuple[ImageQuestions, ...]

    @property
    def questions(self) -> int:
        """Number of questions."""
        return sum(len(image.questions) for image in self.images)


def load_dataset(source: str, limit: int | None = None) -> Dataset:
    """Return the questions of ``source``, at most ``limit`` images of them.

    Args:
        source: ``demo`` (the held-out set of the demo checkpoint), ``demo-development`` (other scenes, to choose
            settings by) or a folder that holds images and one
            ``*.jsonl`` with a line ``{"image": …, "question": …, "answer": …, "type": …}`` per question;
            ``answer`` is a text or a list of accepted texts, ``type`` may be left out.
        limit: number of images; None takes all.

    Raises:
        UserError: no such folder, a malformed line (its number is named), or a missing image.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{limit} images were asked for, expected at least 1.", code="count-out-of-range")
    if source.startswith(LMMS):
        raise UserError(
            f"'{source}' names a task of lmms-eval, which scores in its own way: ask it with 'evaluate', or give "
            "'demo' or a folder of images with a JSONL of questions.",
            code="dataset-is-a-task",
        )
    if source in (DEMO, DEVELOPMENT):
        return Dataset(source, tuple(_demo(source, limit)))
    return Dataset(Path(source).name, tuple(_folder(Path(source))[:limit]))


def _demo(source: str, limit: int | None) -> list[ImageQuestions]:
    from divprune_edge.models.demo.held_out import (
        DEVELOPMENT_SEED,
        HELD_OUT_PICTURES,
        HELD_OUT_SEED,
        held_out,
    )
    from divprune_edge.models.demo.render import render
    from divprune_edge.models.demo.scenes import Scene

    def opener(scene: Scene) -> Callable[[], npt.NDArray[np.uint8]]:
        return lambda: render(scene)

    # All of the set is drawn, then cut: which questions an image gets depends on the images before it alone.
    seed = HELD_OUT_SEED if source == DEMO else DEVELOPMENT_SEED
    data = held_out(HELD_OUT_PICTURES if limit is None else min(limit, HELD_OUT_PICTURES), seed)
    return [
        ImageQuestions(
            f"{i:05}", opener(scene), tuple(LabelledQuestion(q.text, (q.answer,), q.type) for q in asked)
        )
        for i, (scene, asked) in enumerate(zip(data.scenes, data.questions, strict=True))
    ]


def _folder(folder: Path) -> list[ImageQuestions]:
    if not is_folder(folder):
        raise UserError(
            f"There is no folder '{folder}'{did_you_mean(str(folder), (DEMO, DEVELOPMENT))}: give '{DEMO}', "
            f"'{DEVELOPMENT}', or a folder of images with a JSONL of questions.",
            code="dataset-missing",
        )
    files = sorted(folder.glob("*.jsonl"))
    if len(files) != 1:
        raise UserError(
            f"'{folder}' holds {len(files)} files '*.jsonl', expected one, with a line "
            '{"image": …, "question": …, "answer": …} for each question.',
            code="dataset-not-one-file",
        )
    text = read_text(files[0], code="questions-invalid", advice="give a UTF-8 text", most=MOST_BYTES)
    lines = text.split("\n")  # not splitlines: a JSON text may hold other characters that end a line
    asked: dict[str, list[LabelledQuestion]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            image, question = _parse(line, f"'{files[0]}', line {number}")
            if not is_file(folder / image):
                raise UserError(
                    f"'{files[0]}', line {number}: there is no image '{folder / image}'.",
                    code="image-missing",
                )
            asked.setdefault(image, []).append(question)
    if not asked:
        raise UserError(f"'{files[0]}' holds no questions.", code="questions-empty")
    return [ImageQuestions(name, _path(folder / name), tuple(questions)) for name, questions in asked.items()]


def _path(path: Path) -> Callable[[], Path]:
    return lambda: path


def _parse(line: str, where: str) -> tuple[str, LabelledQuestion]:
    try:
        entry: Any = parse_json(line)
    except JsonError as error:
        raise UserError(f"{where} is not JSON ({error}).", code="questions-invalid") from None
    if not isinstance(entry, dict):
        raise UserError(
            f"{where} is not an object with image, question and answer.", code="questions-invalid"
        )
    if "video" in entry:
        raise UserError(
            f"{where} asks about a clip, but evaluation is about images: ask about clips with 'batch'.",
            code="evaluation-of-clips",
        )
    for name in ("image", "question"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise UserError(f"{where} has no text '{name}'.", code="questions-invalid")
    answers = entry.get("answer")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise UserError(
            f"{where} has no 'answer': a text, or a list of accepted texts.", code="questions-invalid"
        )
    kind = entry.get("type", "all")
    if not isinstance(kind, str):
        raise UserError(f"{where}: 'type' is {kind!r}, expected a text.", code="questions-invalid")
    return entry["image"], LabelledQuestion(entry["question"], tuple(answers), kind)
