"""Several questions about their images at once; see :meth:`~divprune_edge.runtime.pipeline.Pipeline.ask_batch`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.prompt import system_turns, user_turn
from divprune_edge.processing.sources import Video, listed
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.generate import Decoding, Writer, write
from divprune_edge.runtime.loaded import LoadedBundle
from divprune_edge.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from divprune_edge.processing.layout import PromptIds
    from divprune_edge.processing.sources import ImageSources, Media
    from divprune_edge.runtime.backends import LanguageSession
    from divprune_edge.runtime.vision import SeenImage, VisualTokens


Question = tuple["ImageSources", str]
Found = TypeVar("Found")


def ask_batch(
    pipeline: LoadedBundle,
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
        _good(question, number)
    answers = _answer(
        pipeline, [question for question in prepared if isinstance(question, _Prepared)], options, watch
    )
    return [_good(answer, number) for number, answer in enumerate(answers, start=1)]


def ask_each(
    pipeline: LoadedBundle,
    questions: Sequence[Question],
    options: Decoding,
    system: str | None = None,
    raw_prompt: bool = False,
) -> list[Answer | UserError]:
    """Return an answer for each of ``questions`` that can be answered, and for the others what is wrong with them."""
    watch = Stopwatch()
    prepared = _prepare(pipeline, questions, False, system, raw_prompt)
    asked = [question for question in prepared if isinstance(question, _Prepared)]
    answers = iter(_answer(pipeline, asked, options, watch))
    return [question if isinstance(question, UserError) else next(answers) for question in prepared]


def _good(found: Found | UserError, number: int) -> Found:
    """Return what was found of a question.

    Raises:
        UserError: it was a mistake.
    """
    if isinstance(found, UserError):
        raise type(found)(f"Question {number} of the batch: {found}", code=found.code)
    return found


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A question that can be asked; questions about the same image share its input."""

    prompt: PromptIds
    images: list[ImageInput]


def _prepare(
    pipeline: LoadedBundle, questions: Sequence[Question], bgr: bool, system: str | None, raw_prompt: bool
) -> list[_Prepared | UserError]:
    """Read prompts and images."""
    read: dict[Hashable, ImageInput] = {}
    prepared: list[_Prepared | UserError] = []
    for image, text in questions:
        try:
            given = sorted(listed(image), key=lambda one: isinstance(one, Video))
            images = _read(pipeline, given, bgr, read)
            turns = [*system_turns(system), user_turn(text, images)]
            prepared.append(_Prepared(pipeline.encode_prompt(turns, images, raw_prompt), images))
        except UserError as error:
            prepared.append(error)
    return prepared


def _read(
    pipeline: LoadedBundle, images: list[Media], bgr: bool, read: dict[Hashable, ImageInput]
) -> list[ImageInput]:
    """Return the images of a question, from ``read`` where another one is about them too, and else into it."""
    # One that is alone in its prompt may be read otherwise.
    alone = sum(not isinstance(image, Video) for image in images) == 1
    keys = [(_key(image), isinstance(image, Video) or alone) for image in images]
    if any(key not in read for key in keys):
        before = [read.get(key) for key in keys]
        for key, found in zip(keys, pipeline.vision.read(images, bgr=bgr, before=before), strict=True):
            read.setdefault(key, found)
    return [read[key] for key in keys]


def _answer(
    pipeline: LoadedBundle, questions: Sequence[_Prepared], options: Decoding, watch: Stopwatch
) -> list[Answer | UserError]:
    if not questions:
        return []
    # An image with several questions is looked at once.
    first = {id(image): image for question in questions for image in question.images}
    order = {key: number for number, key in enumerate(first)}
    watch.lap("preprocess")
    seen = pipeline.vision.see(list(first.values()), pipeline.pruning, watch.lap)
    own = [
        replace(seen, images=tuple(seen.images[order[id(image)]] for image in question.images))
        for question in questions
    ]
    session = pipeline.backend.session(len(questions))
    # One that cannot be answered says so in its place, and the others are answered all the same.
    writers: dict[int, Writer] = {}
    slots: list[int | UserError] = []
    for question, visible in zip(questions, own, strict=True):
        try:
            slot, writer = _begin(pipeline, session, question.prompt, visible, options)
        except UserError as error:
            slots.append(error)
        else:
            slots.append(slot)
            writers[slot] = writer
    write(session, writers)
    found: list[Answer | UserError] = []
    for at, visible in zip(slots, own, strict=True):
        if isinstance(at, UserError):
            found.append(at)
            continue
        try:
            made = writers[at].result()
            found.append(pipeline.answer_of(made, writers[at].prompt, visible, watch, session.gone(at)))
        except UserError as error:
            found.append(error)
    return found


def _begin(
    pipeline: LoadedBundle,
    session: LanguageSession,
    prompt: PromptIds,
    seen: VisualTokens,
    options: Decoding,
) -> tuple[int, Writer]:
    """Return a slot for a prompt, which holds what precedes its image, and what writes its answer."""
    prompt = pipeline.prompts.place(prompt, _in_a_row(seen.images))
    # No table is empty: without an image there is a row that no id refers to.
    rows = seen.rows if seen.images else np.zeros(1, np.int64)
    slot = pipeline.begin(session, prompt, pipeline.backend.take(seen.tokens, rows))
    unread = not session.length(slot) and session.slots > 1
    if unread and prompt.before_image and not session.takes_whole:
        session.extend(slot, prompt.before_image, prompt.positions[..., : len(prompt.before_image)])
        pipeline.remember_prefix(prompt, session, slot)
    return slot, pipeline.writer(prompt, options)


def _in_a_row(images: Sequence[SeenImage]) -> list[SeenImage]:
    """Return images whose rows of the visual tokens are one behind the other's."""
    ends = np.cumsum([len(image.rows) for image in images])
    return [
        replace(image, rows=np.arange(end - len(image.rows), end))
        for image, end in zip(images, ends, strict=True)
    ]


def pairs_of(questions: Any) -> list[Question]:
    """Return the questions as pairs of image, or several or none, and question.

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


def _key(image: Media) -> Hashable:
    """Return what two questions about the same image have in common."""
    if isinstance(image, Video):
        source = image.source
        return (
            (os.fspath(source) if isinstance(source, (str, os.PathLike)) else id(source)),
            image.fps,
            image.frames,
        )
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)
