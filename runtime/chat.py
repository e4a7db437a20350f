"""A conversation: each question after the first one begins with the KV cache of those before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.images import load_image
from divprune_edge.processing.layout import PromptIds
from divprune_edge.processing.prompt import Turn, system_turns, user_turn
from divprune_edge.processing.sources import Video, clips_of, listed
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.backends import Given, LanguageSession
from divprune_edge.runtime.defaults import decoding_of
from divprune_edge.runtime.generate import Decoding, OnText, write
from divprune_edge.runtime.loaded import LoadedBundle
from divprune_edge.runtime.stopwatch import Stopwatch
from divprune_edge.runtime.vision import VisualTokens

if TYPE_CHECKING:
    from PIL import Image

    from divprune_edge.processing.sources import ImageSources, Media, VideoSources


class Chat:
    """A conversation about images, or about none; made by :meth:`~divprune_edge.runtime.pipeline.Pipeline.chat`.

    Each question reuses the KV cache as far as its prompt begins like what the cache holds.
    """

    def __init__(
        self, pipeline: LoadedBundle, images: Sequence[Media], bgr: bool, system: str | None
    ) -> None:
        check_type("bgr", bgr, "bool")
        self._pipeline = pipeline
        self._turns = system_turns(system)
        self._session: LanguageSession | None = None
        # The images whose visual tokens the session has, these, and the ids that its cache holds.
        self._shown: Sequence[ImageInput] = ()
        self._seen: VisualTokens | None = None
        self._cached: tuple[int, ...] = ()
        self._given: Given = {}
        started = time.perf_counter()
        # Those of the turns, and after them those of the next one.
        self._images: list[Image.Image | Video] = []
        self._inputs: list[ImageInput] = []
        self._images, self._inputs = self._with(images, bgr)
        self._preprocess_ms = (time.perf_counter() - started) * 1000

    def give(self, **values: Sequence[Any]) -> None:
        """Hand the schedule's method what it takes beside what it reads, for the next question that brings images.

        Args:
            values: by name, such as ``history`` of ``vla-pruner``: for each image of the conversation an array of
                one number per visual token that the selector keeps, in their order.

        Raises:
            UserError: the bundle has no schedule, its method takes no such values, or they are no finite numbers.
        """
        from divprune_edge.models.schedules import find_method
        from divprune_edge.models.schedules.method import as_values

        schedule = self._pipeline.bundle.manifest.language_model.schedule
        takes = find_method(schedule.method).takes if schedule is not None else ()
        given = {}
        for name, images in values.items():
            if name not in takes:
                what = f"'{schedule.method}'" if schedule is not None else "nothing, as it has no schedule"
                raise UserError(
                    f"The bundle's schedule, {what}, takes no '{name}'"
                    f"{': it takes ' + ', '.join(takes) if takes else ''}.",
                    code="schedule-values",
                )
            each = images if isinstance(images, Iterable) and not isinstance(images, str) else [images]
            given[name] = [as_values(name, value) for value in each]
        self._given = given

    def ask(
        self,
        question: str,
        *,
        image: ImageSources = None,
        video: VideoSources = None,
        fps: float | None = None,
        frames: int | None = None,
        bgr: bool = False,
        stream: OnText | None = None,
        raw_prompt: bool = False,
        **decoding: Any,
    ) -> Answer:
        """Answer the next question; arguments and errors as in
        :meth:`~divprune_edge.runtime.pipeline.Pipeline.ask`.

        ``image`` and ``video`` are those that join the conversation with this question.

        A ``raw_prompt`` is a whole prompt of its own, about all images so far: nothing of the conversation is added to
        it, nor it or its ``image`` to that.
        """
        options = decoding_of(self._pipeline.bundle.manifest.prompt, decoding)
        new = [*listed(image), *clips_of(video, fps, frames)]
        return self._ask(question, stream, raw_prompt, options, new, bgr)

    def _ask(
        self,
        question: str,
        stream: OnText | None,
        raw_prompt: bool,
        options: Decoding,
        more: Sequence[Media] = (),
        bgr: bool = False,
    ) -> Answer:
        pipeline = self._pipeline
        check_type("question", question, "str")
        check_type("bgr", bgr, "bool")
        if stream is not None and not callable(stream):
            raise wrong_type("stream", stream, "a function that takes a text, or None")
        watch = Stopwatch(self._preprocess_ms)
        images, inputs = self._with(more, bgr)
        turns = [*self._turns, user_turn(question, inputs[sum(turn.media for turn in self._turns) :])]
        prompt = pipeline.encode_prompt(turns, inputs, raw_prompt)
        watch.lap("preprocess")
        opened = self._session is None
        session, visual = self._look(inputs, prompt, watch)
        prompt = pipeline.prompts.place(prompt, visual.images)
        # At least the last id is fed again: its logits are what the answer starts from.
        common = min(_common_prefix(prompt.ids, self._cached), len(prompt) - 1)
        session.truncate(self._slot, common)
        # What precedes an image counts for what leaves of it: another one has all of the conversation read anew.
        unread = prompt.ids[session.length(self._slot) :]
        if session.takes_whole and max(unread) >= pipeline.bundle.manifest.language_model.embedding_rows:
            common = 0
            session.truncate(self._slot, common)
        self._cached = prompt.ids[:common]
        writer = pipeline.writer(prompt, options, stream)
        if self._given:
            session.give(self._slot, self._given)
            self._given = {}
        write(session, {self._slot: writer})
        result = writer.result()
        self._cached = (*prompt.ids, *result.token_ids)[: session.length(self._slot)]
        if not raw_prompt:
            self._turns = [*turns, Turn("assistant", result.text)]
            self._images, self._inputs = images, inputs
        self._preprocess_ms = 0.0
        answer = pipeline.answer_of(result, prompt, visual, watch, session.gone(self._slot))
        if opened:  # what a later image has before it is this conversation's
            pipeline.remember_prefix(prompt, session, self._slot)
        return answer

    def _with(self, more: Sequence[Media], bgr: bool) -> tuple[list[Image.Image | Video], list[ImageInput]]:
        """Return the images so far and these, also as the encoder takes them; a turn's clips behind its images."""
        given = [one if isinstance(one, Video) else load_image(one, bgr) for one in more]
        if self._images and not given:
            return self._images, self._inputs
        images = [*self._images, *sorted(given, key=lambda one: isinstance(one, Video))]
        return images, self._pipeline.vision.read(images, before=self._inputs)

    def _look(
        self, images: Sequence[ImageInput], prompt: PromptIds, watch: Stopwatch
    ) -> tuple[LanguageSession, VisualTokens]:
        """Return the session, which is shown what was seen of these images, and that; none is seen again."""
        pipeline, vision = self._pipeline, self._pipeline.vision
        shown, seen = self._shown, self._seen
        if not all(_same(a, b) for a, b in zip(images, shown, strict=False)):
            # One that was alone may be read otherwise beside others; or another was asked about in its place.
            shown, seen, self._cached = (), None, ()
        new = images[len(shown) :]
        if seen is None or new:
            more = vision.see(new, pipeline.pruning, watch.lap)
            # A table without images has a row of zeros, which does not stay before theirs.
            seen = vision.join([seen, more]) if seen is not None and shown else more
            shown = [*shown, *new]
        if self._session is None:
            session = pipeline.backend.session()
            self._slot = pipeline.begin(session, prompt, seen.tokens)
            self._session, self._cached = session, prompt.ids[: session.length(self._slot)]
        else:
            self._session.show(self._slot, seen.tokens)
        self._shown, self._seen = shown, seen
        return self._session, replace(seen, images=seen.images[: len(images)])


def _same(first: ImageInput, second: ImageInput) -> bool:
    """Whether two are one image, read in one way."""
    return first is second or (
        (first.size, first.captions) == (second.size, second.captions)
        and np.array_equal(first.pixels, second.pixels)
        and (first.places is None or second.places is None or np.array_equal(first.places, second.places))
    )


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids the two have in common from the start."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
