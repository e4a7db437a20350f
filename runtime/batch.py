"""Several questions about several images at once; see :meth:`~divprune_edge.runtime.pipeline.Pipeline.ask_batch`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.prompt import Turn, system_turns
from divprune_edge.runtime.generate import Decoding, Writer, write
from divprune_edge.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from divprune_edge.processing.images import ImageSource
    from divprune_edge.processing.layout import PromptIds
    from divprune_edge.runtime.pipeline import Answer, Pipeline


Question = tuple["ImageSource", str]


def ask_batch(
    pipeline: Pipeline,
    questions: Sequence[Question],
    bgr: bool,
    options: Decoding,
    system: str | None = None,
    raw_prompt: bool = False,
) -> list[Answer]:
    """Return the answers in the order of ``questions``.

    Raises:
        UserError: the first question that cannot be asked, by its number.
    """
    watch = Stopwatch()
    prepared = _prepare(pipeline, questions, bgr, system, raw_prompt)
    for number, question in enumerate(prepared, start=1):
        if isinstance(question, UserError):
            raise type(question)(f"Question {number} of the batch: {question}", code=question.code)
    return _answer(
        pipeline, [question for question in prepared if isinstance(question, _Prepared)], options, watch
    )


def ask_each(
    pipeline: Pipeline,
    questions: Sequence[Question],
    options: Decoding,
    system: str | None = None,
    raw_prompt: bool = False,
) -> list[Answer | UserError]:
    """Return an answer for each of ``questions`` that can be asked, and for the others what is wrong with them."""
    watch = Stopwatch()
    prepared = _prepare(pipeline, questions, False, system, raw_prompt)
    asked = [question for question in prepared if isinstance(question, _Prepared)]
    answers = iter(_answer(pipeline, asked, options, watch))
    return [question if isinstance(question, UserError) else next(answers) for question in prepared]


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A question that can be asked; questions about the same image share its input."""

    prompt: PromptIds
    image: ImageInput


def _prepare(
    pipeline: Pipeline, questions: Sequence[Question], bgr: bool, system: str | None, raw_prompt: bool
) -> list[_Prepared | UserError]:
    """Read prompts and images; an image with several questions is read once."""
    read: dict[Hashable, ImageInput | UserError] = {}
    prepared: list[_Prepared | UserError] = []
    for image, text in questions:
        try:
            turns = [*system_turns(system), Turn("user", text, image=True)]
            prompt = pipeline._encode_prompt(turns, raw_prompt)
        except UserError as error:
            prepared.append(error)
            continue
        key = _key(image)
        if key not in read:
            try:
                (read[key],) = pipeline._vision.read([image], bgr=bgr)
            except UserError as error:
                read[key] = error
        found = read[key]
        prepared.append(found if isinstance(found, UserError) else _Prepared(prompt, found))
    return prepared


def _answer(
    pipeline: Pipeline, questions: Sequence[_Prepared], options: Decoding, watch: Stopwatch
) -> list[Answer]:
    if not questions:
        return []
    # An image with several questions is looked at once.
    first = {id(question.image): question.image for question in questions}
    order = {key: number for number, key in enumerate(first)}
    images = [order[id(question.image)] for question in questions]
    watch.lap("preprocess")
    seen = pipeline._vision.see(list(first.values()), pipeline.selector, watch.lap)
    tokens = pipeline._backend.to_host(seen.tokens)
    session = pipeline._backend.session(len(questions))
    writers: dict[int, Writer] = {}
    for question, at in zip(questions, images, strict=True):
        prompt = question.prompt
        visual = pipeline._backend.to_device(tokens[:, seen.images[at].rows])
        slot = pipeline._begin(session, prompt, visual)
        if not session.length(slot) and len(questions) > 1 and prompt.before_image:
            session.extend(slot, prompt.before_image, prompt.positions[: len(prompt.before_image)])
            pipeline._remember_prefix(prompt, session, slot)
        writers[slot] = pipeline._writer(prompt, options)
    write(session, writers)
    return [
        pipeline._answer(writer.result(), writer.prompt, seen.images[at].kept_indices, watch)
        for writer, at in zip(writers.values(), images, strict=True)
    ]


def pairs_of(questions: Any) -> list[tuple[ImageSource, str]]:
    """Return the questions as pairs of image and question.

    Raises:
        UserTypeError: they are no such pairs; the number of the first that is not is named.
    """
    if isinstance(questions, (str, bytes)) or not isinstance(questions, Iterable):
        raise wrong_type("questions", questions, "a list of pairs of image and question")
    pairs = list(questions)
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise wrong_type(f"Question {number} of the batch", pair, "a pair of image and question")
        check_type(f"The question of pair {number}", pair[1], "str")
    return [(image, text) for image, text in pairs]


def _key(image: ImageSource) -> Hashable:
    """Return what two questions about the same image have in common."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)
