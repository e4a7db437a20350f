"""The Python API: open a bundle once, ask many questions.

>>> from divprune_edge import Pipeline                                              # doctest: +SKIP
>>> Pipeline("demo-bundle").ask("cat.jpg", "What is on the sofa?").answer           # doctest: +SKIP
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError
from divprune_edge.processing.sources import clips_of, listed
from divprune_edge.runtime.answer import Answer
from divprune_edge.runtime.backends import Backend, open_backend
from divprune_edge.runtime.batch import ask_batch, pairs_of
from divprune_edge.runtime.budgets import AUTO, budgets_of, check_auto
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.chat import Chat
from divprune_edge.runtime.defaults import decoding_of
from divprune_edge.runtime.generate import OnText
from divprune_edge.runtime.loaded import LoadedBundle
from divprune_edge.runtime.progress import OnProgress, in_silence

if TYPE_CHECKING:
    from divprune_edge.processing.sources import ImageSources, VideoSources

_SIDE = 448
"""Pixels a side of the image of a warm-up, where a model takes any size."""


class Pipeline(LoadedBundle):
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
        warm_up: answer something at once, so that the first question waits for nothing that the second does not; what
            that took is ``warm_up_ms``, and ``warm_up`` in the answers' times.

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
        pruning = (
            budgets_of(self.bundle, selector, radius)
            if budget == AUTO
            else self.bundle.selector(selector, keep)
        )
        super().__init__(self.bundle, pruning, self._open(backend, threads), on_progress)
        if warm_up:
            self.warm_up_ms = self._warm_up()

    def _open(self, backend: str, threads: int | None) -> Backend:
        return open_backend(self.bundle, backend, threads)

    def with_selector(self, selector: str | None = None, keep: int | None = None) -> Pipeline:
        """Return a pipeline over the same loaded graphs that prunes otherwise; arguments as in the constructor.

        Raises:
            UserError: the bundle has no such selector.
        """
        _check_budget(selector, keep)
        other = copy(self)
        other.pruning = self.bundle.selector(selector, keep)
        self.backend.load(other.pruning)
        return other

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

    def _warm_up(self) -> float:
        """Answer a question about a grey image in two tokens, a prefill and a decode step; return the milliseconds.

        Graphs are loaded by then, but the kernels of a GPU are not before they are used, memory is reserved as it is
        needed, and what comes before the image in a prompt is computed once.

        Raises:
            UserError: the bundle has no room for one.
        """
        started = time.perf_counter()
        height, width = self.bundle.manifest.encoder_input[1] or (_SIDE, _SIDE)
        self.ask(np.full((height, width, 3), 127, np.uint8), "?", max_tokens=2, ignore_eos=True)
        return (time.perf_counter() - started) * 1000


def _check_auto(budget: Any, radius: Any, keep: Any) -> None:
    check_type("budget", budget, "str | None")
    check_type("radius", radius, "float | None")
    check_auto(budget, radius)
    if budget is not None and keep is not None:
        raise UserError(
            "--budget auto chooses among all budgets of a selector: leave out --keep.",
            code="options-exclusive",
        )


def _check_budget(selector: Any, keep: Any) -> None:
    check_type("selector", selector, "str | None")
    check_type("keep", keep, "int | None")
