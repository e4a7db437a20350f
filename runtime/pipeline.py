"""The Python API: open a bundle once, ask many questions.

>>> from divprune_edge import Pipeline                                              # doctest: +SKIP
>>> Pipeline("demo-bundle").ask("cat.jpg", "What is on the sofa?").answer           # doctest: +SKIP
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError
from divprune_edge.manifest import SelectorInfo
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.images import load_image
from divprune_edge.processing.layout import PlacedImage, PromptIds
from divprune_edge.processing.prompt import Turn, system_turns, user_turn
from divprune_edge.processing.sources import Video, clips_of, listed
from divprune_edge.runtime.backends import Backend, CacheRows, DeviceTensor, LanguageSession, open_backend
from divprune_edge.runtime.budgets import AUTO, Budgets, budgets_of
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.defaults import decoding_of
from divprune_edge.runtime.generate import (
    Decoding,
    FinishReason,
    Generation,
    OnText,
    Writer,
    new_writer,
    write,
)
from divprune_edge.runtime.progress import OnProgress, in_silence
from divprune_edge.runtime.stopwatch import Stopwatch
from divprune_edge.runtime.vision import Pruning, Vision, VisualTokens
from divprune_edge.runtime.warm_up import warm_up as warmed

if TYPE_CHECKING:
    from PIL import Image

    from divprune_edge.processing.sources import ImageSources, Media, VideoSources


@dataclass(frozen=True)
class Answer:
    """What came back, and what it took.

    ``token_ids`` are the sampled ids, with the stop id if one ended the answer. ``kept_indices`` int64 [K]
    are the visual tokens that the language model saw, ascending: those of several images one after the other, with
    ``image_tokens`` for each, clips among them. ``visual_tokens`` is K, of all of them, and ``prompt_tokens`` counts
    them too. ``timings_ms`` has ``preprocess`` (images and prompt), ``vision``, ``select``, ``prefill`` (until the
    first id), ``decode`` and ``total``; loading the graphs is in none of them, nor is ``warm_up``, which is there where
    a pipeline was warmed up. In a chat the later questions have no ``vision`` and ``select`` to pay for, unless they
    bring an image: both are 0. In a batch the first three stages are those of all questions together, ``prefill`` has
    those of the questions before in it, and ``total`` lasts until all of them are answered.
    """

    answer: str
    token_ids: tuple[int, ...]
    kept_indices: npt.NDArray[np.int64]
    prompt_tokens: int
    visual_tokens: int
    image_tokens: tuple[int, ...]
    timings_ms: dict[str, float]
    finish_reason: FinishReason
    backend: str

    def to_json(self) -> str:
        """Return the answer as one line of JSON."""
        fields = {
            **vars(self),
            "kept_indices": self.kept_indices.tolist(),
            "timings_ms": {stage: round(value, 3) for stage, value in self.timings_ms.items()},
        }
        return json.dumps(fields, ensure_ascii=False)


class Pipeline:
    """A bundle, ready to answer questions about images.

    Args:
        bundle: an opened bundle or the path of one.
        selector: id or name of a selector in the bundle, or ``none``; None takes the bundle's default.
        keep: number of visual tokens to keep, if the name alone does not say.
        budget: ``auto`` takes, image by image, the smallest of the selector's budgets in the bundle that covers it:
            see :mod:`~divprune_edge.runtime.budgets`.
        radius: with that, the coverage radius that is small enough.
        backend: ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``.
        threads: CPU threads of one operator; None takes all cores.
        on_progress: told of long work, as ``("encoding images", 2, 5)``: what is done, how many of it, and of how many,
            or None where that is not known yet.
        warm_up: answer something at once (:mod:`~divprune_edge.runtime.warm_up`), so that the first question waits for
            nothing that the second does not; what that took is ``warm_up_ms``, and ``warm_up`` in the answers' times.

    Raises:
        UserError: not a bundle, no such selector, or a backend that is not there.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        selector: str | None = None,
        keep: int | None = None,
        backend: str = "cpu",
        threads: int | None = None,
        on_progress: OnProgress = in_silence,
        *,
        warm_up: bool = False,
        budget: str | None = None,
        radius: float | None = None,
    ) -> None:
        if not isinstance(bundle, Bundle):
            check_type("bundle", bundle, "path")
        check_type("backend", backend, "str")
        check_type("threads", threads, "int | None")
        if not callable(on_progress):
            raise wrong_type("on_progress", on_progress, "a function that takes a text and two numbers")
        check_type("warm_up", warm_up, "bool")
        _check_budget(selector, keep)
        _check_auto(budget, radius, keep)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._pruning: Pruning
        if budget == AUTO:
            self._pruning = budgets_of(self.bundle, selector, radius)
        else:
            self._pruning = self.bundle.selector(selector, keep)
        self._backend = self._open(backend, threads)
        self._vision = Vision(self.bundle, self._backend, on_progress)
        self._prompt = self.bundle.prompt_encoder()
        for one in self._pruning.selectors if isinstance(self._pruning, Budgets) else [self._pruning]:
            self._backend.load(one)
        # Shared by all copies: what comes before the first image does not depend on it.
        self._prefix: dict[tuple[int, ...], CacheRows] = {}
        self.warm_up_ms: float | None = None
        if warm_up:
            self.warm_up_ms = warmed(self)

    def _open(self, backend: str, threads: int | None) -> Backend:
        return open_backend(self.bundle, backend, threads)

    def with_selector(self, selector: str | None = None, keep: int | None = None) -> Pipeline:
        """Return a pipeline over the same loaded graphs that prunes otherwise; arguments as in the constructor.

        Raises:
            UserError: the bundle has no such selector.
        """
        _check_budget(selector, keep)
        other = copy(self)
        other._pruning = self.bundle.selector(selector, keep)
        self._backend.load(other._pruning)
        return other

    @property
    def selector(self) -> SelectorInfo | None:
        """What prunes, None where nothing does; of several budgets the largest."""
        return self._pruning.largest if isinstance(self._pruning, Budgets) else self._pruning

    @property
    def visual_tokens(self) -> int:
        """K: visual tokens that the language model sees of an image, at most."""
        return self.bundle.manifest.visual_tokens(self.selector)

    def ask(
        self,
        image: ImageSources,
        question: str,
        *,
        video: VideoSources = None,
        fps: float | None = None,
        frames: int | None = None,
        stream: OnText | None = None,
        bgr: bool = False,
        system: str | None = None,
        raw_prompt: bool = False,
        **decoding: Any,
    ) -> Answer:
        """Answer one question about an image, a clip, several of them, or none.

        Args:
            image: a path, a Pillow image, or a uint8 array [H, W, 3] in RGB; a list or tuple of them, which come
                before the question in this order; or None.
            question: what to ask; special tokens in it are plain text.
            video: a clip, which comes behind the images: the path of a file or of a folder of frames, an array uint8
                [T, H, W, 3] or a list of images; or a list of several :class:`~divprune_edge.Video`.
            fps: how many frames a second to look at; of frames given one by one, which are all looked at, their rate.
            frames: how many frames to look at. Without both, as the checkpoint has it.
            stream: gets the answer piece by piece.
            bgr: the array is in BGR; each of several is.
            system: an instruction for the whole conversation, in a system turn of the chat template.
            raw_prompt: the question is the whole prompt, with a placeholder in it for each image: no chat template,
                and special tokens act.
            decoding: fields of :class:`~divprune_edge.runtime.generate.Decoding`, such as ``max_tokens``;
                ``checkpoint_defaults=True`` takes what they leave open from the checkpoint's
                ``generation_config.json``.

        Raises:
            UserError: an image, question or option that cannot be used as it is. One of another type, and an option
                that there is not, is a UserTypeError, which is a TypeError, too.
        """
        options = decoding_of(self.bundle.manifest.prompt, decoding)
        chat = self.chat(image, video=video, fps=fps, frames=frames, bgr=bgr, system=system)
        return chat._ask(question, stream, raw_prompt, options)

    def ask_batch(
        self,
        questions: Sequence[tuple[ImageSources, str]],
        *,
        bgr: bool = False,
        system: str | None = None,
        raw_prompt: bool = False,
        **decoding: Any,
    ) -> list[Answer]:
        """Answer several questions at once: more answers per second, each of them later.

        Every answer is the one that :meth:`ask` gives, whatever else is in the batch: each ends on its own, and
        with ``seed`` each is sampled from a generator of its own with that seed. An image with several questions
        is looked at once. Memory grows with the number of questions: one KV cache each.

        Args:
            questions: pairs of image and question; instead of an image also several or None, as in :meth:`ask`, or
                :class:`~divprune_edge.Video`.
            bgr: the arrays are in BGR.
            system: as in :meth:`ask`, for every question.
            raw_prompt: as in :meth:`ask`, for every question.
            decoding: as in :meth:`ask`.

        Returns:
            One answer per question, in their order.

        Raises:
            UserError: as in :meth:`ask`, with the question's number; or more questions than the backend has slots.
        """
        from divprune_edge.runtime.batch import ask_batch, pairs_of

        options = decoding_of(self.bundle.manifest.prompt, decoding)
        return ask_batch(self, pairs_of(questions), bgr, options, system, raw_prompt)

    def chat(
        self,
        image: ImageSources,
        *,
        video: VideoSources = None,
        fps: float | None = None,
        frames: int | None = None,
        bgr: bool = False,
        system: str | None = None,
    ) -> Chat:
        """Begin a conversation, the first question of which is about ``image``; more may come with later questions.

        An image is encoded, pruned and prefilled once. All arguments are as in :meth:`ask`.

        Raises:
            UserError: an image cannot be used.
        """
        return Chat(self, [*listed(image), *clips_of(video, fps, frames)], bgr, system)

    def _encode_prompt(
        self, turns: Sequence[Turn], images: Sequence[ImageInput], raw: bool = False
    ) -> PromptIds:
        """Return the ids of a conversation that brings these images."""
        counts = [span for image in images for span in self._vision.spans(image, self._pruning)]
        return self._prompt.encode_raw(turns, counts) if raw else self._prompt.encode(turns, counts)

    def _placed(self, prompt: PromptIds, images: Sequence[PlacedImage]) -> PromptIds:
        """Return the prompt with its visual tokens where they lie and at their positions.

        Raises:
            UserError: those of what was pruned leave none for an answer.
        """
        language = self.bundle.manifest.language_model
        placed = prompt.placed(language.embedding_rows, images, language.axes)
        # A clip's tokens may lie behind the text that follows it.
        taken = max(placed.next_position, int(placed.positions.max(initial=-1)) + 1)
        if taken >= language.context:
            raise UserError(
                f"The prompt takes {taken} positions, those of pruned tokens among them, but the "
                f"model's context has {language.context} with the answer: ask a shorter question or about fewer images "
                "or frames, or export with --positions compact.",
                code="prompt-too-long",
            )
        return placed

    def _writer(self, prompt: PromptIds, options: Decoding, on_text: OnText | None = None) -> Writer:
        """Begin an answer to ``prompt``."""
        return new_writer(self.bundle.manifest, self._prompt.tokenizer.model, prompt, options, on_text)

    def _answer(
        self, result: Generation, prompt: PromptIds, visual: VisualTokens, watch: Stopwatch
    ) -> Answer:
        times = {**watch.stages, "prefill": result.prefill_ms, "decode": result.decode_ms}
        before = {} if self.warm_up_ms is None else {"warm_up": self.warm_up_ms}
        return Answer(
            answer=result.text,
            token_ids=result.token_ids,
            kept_indices=visual.origins,
            prompt_tokens=len(prompt),
            visual_tokens=prompt.visual_tokens,
            image_tokens=tuple(len(image.rows) for image in visual.images),
            timings_ms={**times, "total": watch.total, **before},
            finish_reason=result.finish_reason,
            backend=self._backend.name,
        )

    def _begin(self, session: LanguageSession, prompt: PromptIds, visual: DeviceTensor) -> int:
        """Return a slot for ``prompt`` that begins with what is kept of the ids before its first image."""
        return session.add(visual, self._prefix.get(prompt.before_image))

    def _remember_prefix(self, prompt: PromptIds, session: LanguageSession, slot: int) -> None:
        """Keep the cache of what comes before the first image: the next conversation begins with it."""
        before = prompt.before_image
        if before and before not in self._prefix:
            self._prefix.clear()
            self._prefix[before] = session.rows(slot, len(before))


class Chat:
    """A conversation about images, or about none; made by :meth:`Pipeline.chat`.

    Each question reuses the KV cache as far as its prompt begins like what the cache holds.
    """

    def __init__(self, pipeline: Pipeline, images: Sequence[Media], bgr: bool, system: str | None) -> None:
        check_type("bgr", bgr, "bool")
        self._pipeline = pipeline
        self._turns = system_turns(system)
        self._session: LanguageSession | None = None
        # The images whose visual tokens the session has, these, and the ids that its cache holds.
        self._shown: Sequence[ImageInput] = ()
        self._seen: VisualTokens | None = None
        self._cached: tuple[int, ...] = ()
        self._given: dict[str, list[npt.NDArray[np.float32]]] = {}
        started = time.perf_counter()
        # Those of the turns, and after them those of the next one.
        self._images: list[Image.Image | Video] = []
        self._inputs: list[ImageInput] = []
        self._images, self._inputs = self._with(images, bgr)
        self._preprocess_ms = (time.perf_counter() - started) * 1000

    def give(self, **values: Sequence[Any]) -> None:
        """Hand the schedule's method what it takes beside what it reads, for the next question that brings images.

        Args:
            values: by name, such as ``history`` of ``vla-pruner``: for each image an array of one number per visual
                token that the selector keeps, in their order.

        Raises:
            UserError: the bundle has no schedule, or its method takes no such values.
        """
        from divprune_edge.models.schedules import find_method

        schedule = self._pipeline.bundle.manifest.language_model.schedule
        takes = find_method(schedule.method).takes if schedule is not None else ()
        for name in values:
            if name not in takes:
                what = f"'{schedule.method}'" if schedule is not None else "nothing, as it has no schedule"
                raise UserError(
                    f"The bundle's schedule, {what}, takes no '{name}'"
                    f"{': it takes ' + ', '.join(takes) if takes else ''}.",
                    code="schedule-values",
                )
        self._given = {
            name: [np.asarray(value, np.float32) for value in images] for name, images in values.items()
        }

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
        """Answer the next question; arguments and errors as in :meth:`Pipeline.ask`.

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
        prompt = pipeline._encode_prompt(turns, inputs, raw_prompt)
        watch.lap("preprocess")
        opened = self._session is None
        session, visual = self._look(inputs, prompt, watch)
        prompt = pipeline._placed(prompt, visual.images)
        # At least the last id is fed again: its logits are what the answer starts from.
        common = min(_common_prefix(prompt.ids, self._cached), len(prompt) - 1)
        session.truncate(self._slot, common)
        self._cached = prompt.ids[:common]
        writer = pipeline._writer(prompt, options, stream)
        if self._given:
            from divprune_edge.runtime.backends.chain import ChainSession

            assert isinstance(session, ChainSession), "a bundle with a schedule is a chain"
            session.give(self._slot, self._given)
            self._given = {}
        write(session, {self._slot: writer})
        result = writer.result()
        self._cached = (*prompt.ids, *result.token_ids)[: session.length(self._slot)]
        if not raw_prompt:
            self._turns = [*turns, Turn("assistant", result.text)]
            self._images, self._inputs = images, inputs
        self._preprocess_ms = 0.0
        answer = pipeline._answer(result, prompt, visual, watch)
        if opened:  # what a later image has before it is this conversation's
            pipeline._remember_prefix(prompt, session, self._slot)
        return answer

    def _with(self, more: Sequence[Media], bgr: bool) -> tuple[list[Image.Image | Video], list[ImageInput]]:
        """Return the images so far and these, also as the encoder takes them; a turn's clips behind its images."""
        given = [one if isinstance(one, Video) else load_image(one, bgr) for one in more]
        if self._images and not given:
            return self._images, self._inputs
        images = [*self._images, *sorted(given, key=lambda one: isinstance(one, Video))]
        return images, self._pipeline._vision.read(images, before=self._inputs)

    def _look(
        self, images: Sequence[ImageInput], prompt: PromptIds, watch: Stopwatch
    ) -> tuple[LanguageSession, VisualTokens]:
        """Return the session, which is shown what was seen of these images, and that; none is seen again."""
        pipeline, vision = self._pipeline, self._pipeline._vision
        shown, seen = self._shown, self._seen
        if not all(_same(a, b) for a, b in zip(images, shown, strict=False)):
            # One that was alone may be read otherwise beside others; or another was asked about in its place.
            shown, seen, self._cached = (), None, ()
        new = images[len(shown) :]
        if seen is None or new:
            more = vision.see(new, pipeline._pruning, watch.lap)
            # A table without images has a row of zeros, which does not stay before theirs.
            seen = vision.join([seen, more]) if seen is not None and shown else more
            shown = [*shown, *new]
        if self._session is None:
            session = pipeline._backend.session()
            self._slot = pipeline._begin(session, prompt, seen.tokens)
            self._session, self._cached = session, prompt.ids[: session.length(self._slot)]
        else:
            self._session.show(self._slot, seen.tokens)
        self._shown, self._seen = shown, seen
        return self._session, replace(seen, images=seen.images[: len(images)])


def _check_auto(budget: Any, radius: Any, keep: Any) -> None:
    check_type("budget", budget, "str | None")
    check_type("radius", radius, "float | None")
    if budget not in (None, AUTO):
        raise UserError(f"The budget is '{budget}', expected auto.", code="option-invalid")
    if budget is None and radius is not None:
        raise UserError("A radius says when a budget is enough: add --budget auto.", code="option-conflict")
    if budget is not None and keep is not None:
        raise UserError(
            "--budget auto chooses among all budgets of a selector: leave out --keep.", code="option-conflict"
        )


def _check_budget(selector: Any, keep: Any) -> None:
    check_type("selector", selector, "str | None")
    check_type("keep", keep, "int | None")


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
