"""``python -m runtime batch``: a file of questions in, a line of JSON per answer out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from divprune_edge.runtime.options import (
    BudgetOption,
    BundleArgument,
    DefaultsOption,
    FpsOption,
    FramesOption,
    GoOnOption,
    KeepOption,
    LongestOption,
    PenaltyOption,
    RadiusOption,
    RawOption,
    SelectorOption,
    StopIdOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WarmUpOption,
    decoding_options,
)

if TYPE_CHECKING:
    from divprune_edge.errors import UserError

LONGEST_LINE = 1 << 20
"""Bytes of one question; a longer line is passed over without being read into memory."""


def batch_command(
    bundle: BundleArgument,
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="JSONL",
            help='A line {"image": PATH, "question": TEXT} for each, or "images": [PATH, …], or "video": PATH; '
            "paths start at the file's folder.",
        ),
    ],
    *,
    fps: FpsOption = None,
    frames: FramesOption = None,
    size: Annotated[int, typer.Option(help="Questions answered at once; each takes a KV cache.")] = 8,
    max_tokens: LongestOption = None,
    ignore_eos: GoOnOption = False,
    selector: SelectorOption = None,
    keep: KeepOption = None,
    budget: BudgetOption = None,
    radius: RadiusOption = None,
    backend: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu",
    threads: ThreadsOption = None,
    warm_up: WarmUpOption = False,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    repetition_penalty: PenaltyOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling; each answer starts from it.")
    ] = None,
    stop: StopOption = None,
    stop_id: StopIdOption = None,
    checkpoint_defaults: DefaultsOption = False,
    system: SystemOption = None,
    raw_prompt: RawOption = False,
) -> None:
    """Answer a file of questions, several at once.

    Each line of the output repeats its line of the input and adds the answer, in the same order. A line that cannot be
    answered gets "error" and "code" instead, the others are answered all the same, and the exit code is 1.
    """
    from divprune_edge.errors import DivpruneError, UserError
    from divprune_edge.processing.sources import Video
    from divprune_edge.runtime.batch import Question, ask_each
    from divprune_edge.runtime.defaults import decoding_of
    from divprune_edge.runtime.generate import Decoding
    from divprune_edge.runtime.pipeline import Pipeline
    from divprune_edge.runtime.progress import on_terminal

    if size < 1:
        raise UserError(f"--size is {size}, expected at least 1.", code="count-out-of-range")
    decoding = decoding_options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        stop_ids=tuple(stop_id or ()),
        ignore_eos=ignore_eos,
    )
    Video(questions, fps, frames)  # a wrong value is told before anything is loaded,
    Decoding(**decoding)  # here as well
    lines = read_questions(questions)
    first = list(islice(lines, 1))  # and so is a file that is none
    with on_terminal() as tell:
        pipeline = Pipeline(
            bundle, selector, keep, backend, threads, tell, warm_up=warm_up, budget=budget, radius=radius
        )
        decoding["checkpoint_defaults"] = checkpoint_defaults
        options = decoding_of(pipeline.bundle.manifest.prompt, decoding)
        lines = chain(first, lines)
        asked = failed = 0
        while part := list(islice(lines, size)):
            good = [line for line in part if line.error is None]
            pairs: list[Question] = [
                (
                    [
                        *(questions.parent / image for image in line.images),
                        *(Video(questions.parent / clip, fps, frames) for clip in line.clips),
                    ],
                    line.entry["question"],
                )
                for line in good
            ]
            found = ask_each(pipeline, pairs, options, system, raw_prompt)
            answers = dict(zip((line.number for line in good), found, strict=True))
            for line in part:
                answer = line.error or answers[line.number]
                asked += 1
                if isinstance(answer, UserError):
                    failed += 1
                    fields = {"line": line.number, **line.entry, "error": str(answer), "code": answer.code}
                else:
                    fields = {**line.entry, **json.loads(answer.to_json())}
                print(json.dumps(fields, ensure_ascii=False), flush=True)
    if failed:
        raise DivpruneError(
            f"{failed} of {asked} lines of '{questions}' have no answer: each says why, in its place.",
            code="questions-unanswered",
        )


@dataclass(frozen=True)
class QuestionLine:
    """A line of the file: an object with ``question`` and whatever else it has, or what is wrong.

    ``entry`` is empty where the line is not an object. ``images`` and ``clips`` are the paths that it names.
    """

    number: int
    entry: dict[str, Any]
    error: UserError | None = None
    images: tuple[str, ...] = ()
    clips: tuple[str, ...] = ()


def read_questions(file: Path) -> Iterator[QuestionLine]:
    """Yield the lines of a JSONL that are not empty; images are looked for when their turn comes.

    Raises:
        UserError: not readable, or no questions in it.
    """
    from divprune_edge.errors import UserError
    from divprune_edge.strict_json import is_file

    if not is_file(file):
        raise UserError(
            f"There is no file '{file}': give a JSONL with a question on each line.", code="questions-missing"
        )
    empty = True
    try:
        with file.open("rb") as stream:
            number = 0
            # Not splitlines: a JSON text may hold other characters that end a line.
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(LONGEST_LINE)
                    error = f"is longer than {LONGEST_LINE} bytes"
                    yield QuestionLine(number, {}, _invalid(file, number, error))
                elif line.strip():
                    yield _parse(line, file, number)
                else:
                    continue
                empty = False
    except OSError as error:
        raise UserError(
            f"'{file}' cannot be read ({error.strerror or error}): give a JSONL with a question on each line.",
            code="questions-invalid",
        ) from None
    if empty:
        raise UserError(f"'{file}' holds no questions.", code="questions-empty")


def _parse(line: bytes, file: Path, number: int) -> QuestionLine:
    from divprune_edge.errors import UserError
    from divprune_edge.processing.images import refuse_address
    from divprune_edge.strict_json import parse_json

    try:
        entry: Any = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError:
        return QuestionLine(number, {}, _invalid(file, number, "is not UTF-8"))
    except ValueError as error:
        return QuestionLine(number, {}, _invalid(file, number, f"is not JSON ({error})"))
    if not isinstance(entry, dict):
        return QuestionLine(number, {}, _invalid(file, number, "is not an object with image and question"))
    given = entry.get("images", entry.get("image"))
    images = [] if given is None else given if isinstance(given, list) else [given]
    clips = [] if entry.get("video") is None else [entry["video"]]
    try:
        if not _is_text(entry.get("question")):
            raise _invalid(file, number, "has no text 'question'")
        if "image" in entry and "images" in entry:
            raise _invalid(file, number, "has both 'image' and 'images'")
        if not all(_is_text(image) for image in images):
            raise _invalid(file, number, "has an image that is no path")
        if not all(_is_text(clip) for clip in clips):
            raise _invalid(file, number, "has a video that is no path")
        for path in (*images, *clips):
            refuse_address(path)
    except UserError as error:
        return QuestionLine(number, entry, error)
    return QuestionLine(number, entry, images=tuple(images), clips=tuple(clips))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _invalid(file: Path, number: int, reason: str) -> UserError:
    from divprune_edge.errors import UserError

    return UserError(f"'{file}', line {number} {reason}.", code="questions-invalid")
