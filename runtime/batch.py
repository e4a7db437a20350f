"""Several questions about several images at once; see :meth:`~divprune_edge.runtime.pipeline.Pipeline.ask_batch`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError
from divprune_edge.processing.prompt import Turn, system_turns
from divprune_edge.runtime.generate import Decoding, Writer, write
from divprune_edge.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from divprune_edge.processing.images import ImageSource
    from divprune_edge.runtime.pipeline import Answer, Pipeline


def ask_batch(
    pipeline: Pipeline,
    questions: Sequence[tuple[ImageSource, str]],
    bgr: bool,
    options: Decoding,
    system: str | None = None,
    raw_prompt: bool = False,
) -> list[Answer]:
    """Return the answers in the order of ``questions``."""
    if not questions:
        return []
    watch = Stopwatch()
    prompts = []
    for number, (_, text) in enumerate(questions, start=1):
        with _question(number):
            turns = [*system_turns(system), Turn("user", text, image=True)]
            prompts.append(pipeline._encode_prompt(turns, raw_prompt))
    # An image with several questions is looked at once.
    first: dict[Hashable, int] = {}
    for i, (image, _) in enumerate(questions):
        first.setdefault(_key(image), i)
    order = {key: number for number, key in enumerate(first)}
    images = [order[_key(image)] for image, _ in questions]
    kept, indices = _see(pipeline, [(i + 1, questions[i][0]) for i in first.values()], bgr, watch)
    session = pipeline._backend.session(len(questions))
    writers: dict[int, Writer] = {}
    for prompt, at in zip(prompts, images, strict=True):
        slot = pipeline._begin(session, prompt, pipeline._backend.to_device(kept[at : at + 1]))
        if not session.length(slot) and len(prompts) > 1 and prompt.before_image:
            session.extend(slot, prompt.before_image, prompt.positions[: len(prompt.before_image)])
            pipeline._remember_prefix(prompt, session, slot)
        writers[slot] = pipeline._writer(prompt, options)
    write(session, writers)
    return [
        pipeline._answer(writer.result(), writer.prompt, indices[at], watch)
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


@contextmanager
def _question(number: int) -> Iterator[None]:
    """Say which question an error is about."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"Question {number} of the batch: {error}", code=error.code) from None


def _key(image: ImageSource) -> Hashable:
    """Return what two questions about the same image have in common."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)


def _see(
    pipeline: Pipeline,
    images: Sequence[tuple[int, ImageSource]],
    bgr: bool,
    watch: Stopwatch,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Encode and prune (number of the question, image), a few at a time.

    Returns the kept tokens [images, K, D] and their indices int64 [images, K].
    """
    kept, indices = [], []
    at_once = pipeline._backend.images_at_once
    for start in range(0, len(images), at_once):
        pixels = []
        for number, image in images[start : start + at_once]:
            with _question(number):
                pixels.append(pipeline._vision.pixels(image, bgr=bgr))
        watch.lap("preprocess")
        seen = pipeline._vision.see(np.concatenate(pixels), pipeline.selector, watch.lap)
        kept.append(pipeline._backend.to_host(seen.tokens))
        indices.append(seen.kept_indices)
    return np.concatenate(kept), np.concatenate(indices)
