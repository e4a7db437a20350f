"""Several questions about several images at once; see :meth:`~divprune_edge.runtime.pipeline.Pipeline.ask_batch`."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.processing.prompt import PromptIds, Turn, system_turns
from divprune_edge.runtime.backends import BatchBackend, CacheRows
from divprune_edge.runtime.generate import Decoding, write
from divprune_edge.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from divprune_edge.processing.images import ImageSource
    from divprune_edge.runtime.pipeline import Answer, Pipeline

IMAGES_AT_ONCE = 4
"""Images that the vision encoder sees at once: its memory grows with them, its speed hardly."""


def ask_batch(
    pipeline: Pipeline,
    questions: Sequence[tuple[ImageSource, str]],
    bgr: bool,
    options: Decoding,
    system: str | None = None,
    raw_prompt: bool = False,
) -> list[Answer]:
    """Return the answers in the order of ``questions``."""
    backend = _require_batches(pipeline, options)
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
    rows = _common_rows(pipeline, backend, prompts, kept[:1])
    writers = [pipeline._writer(prompt, options) for prompt in prompts]
    batch = backend.language_batch(backend.to_device(kept[images]), rows)
    write(batch, writers, known=rows[0].shape[2] if rows else 0)
    return [
        pipeline._answer(writer.result(), prompt, indices[image], watch)
        for writer, prompt, image in zip(writers, prompts, images, strict=True)
    ]


def _require_batches(pipeline: Pipeline, options: Decoding) -> BatchBackend:
    backend = pipeline._backend
    if not isinstance(backend, BatchBackend):
        raise UserError(
            f"Backend '{backend.name}' takes one sequence at a time: ask one by one, or use the backend cpu or cuda."
        )
    backend.check_batch(options.prefill_chunk)
    return backend


@contextmanager
def _question(number: int) -> Iterator[None]:
    """Say which question an error is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Question {number} of the batch: {error}") from None


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
    for start in range(0, len(images), IMAGES_AT_ONCE):
        pixels = []
        for number, image in images[start : start + IMAGES_AT_ONCE]:
            with _question(number):
                pixels.append(pipeline._vision.pixels(image, bgr=bgr))
        watch.lap("preprocess")
        seen = pipeline._vision.see(np.concatenate(pixels), pipeline.selector, watch.lap)
        kept.append(pipeline._backend.to_host(seen.tokens))
        indices.append(seen.kept_indices)
    return np.concatenate(kept), np.concatenate(indices)


def _common_rows(
    pipeline: Pipeline, backend: BatchBackend, prompts: Sequence[PromptIds], visual: npt.NDArray[Any]
) -> CacheRows | None:
    """Return the cache of what all prompts have before the image, computed once; None if there is no use."""
    before = prompts[0].before_image
    if not (before and backend.batch_takes_rows) or any(prompt.before_image != before for prompt in prompts):
        return None
    if before not in pipeline._prefix:
        session = backend.language(backend.to_device(visual))
        session.extend(before)
        pipeline._remember_prefix(prompts[0], session)
    return pipeline._prefix[before]
