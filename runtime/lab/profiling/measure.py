"""Answers timed stage by stage, with several variants in turn so that a drift of the machine hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import Manifest, SelectorInfo
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.layout import PromptIds
from divprune_edge.processing.patches import PATCHES, most_dimensions
from divprune_edge.processing.prompt import PromptEncoder, Turn
from divprune_edge.runtime.backends import Backend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.profiling.peak_memory import peak_bytes
from divprune_edge.runtime.sampling import Sampler
from divprune_edge.runtime.vision import Vision, groups_of

STAGES = ("preprocess", "vision", "select", "prefill")
"""Stages before the first token; each later token is a decode step."""
DECODE = "decode step"


@dataclass(frozen=True)
class Workload:
    """What every variant is asked: a question about an image, answered with ``tokens`` tokens, past any stop id."""

    image: Path
    question: str
    tokens: int


@dataclass(frozen=True)
class Variant:
    """One bundle with one selector on one backend; None keeps every visual token. ``title`` is for reports."""

    title: str
    bundle: Bundle
    selector: SelectorInfo | None
    backend: Backend
    prompt: PromptEncoder

    @property
    def vision(self) -> Vision:
        """What sees images."""
        return Vision(self.bundle, self.backend)

    def encode(self, question: str, image: ImageInput) -> PromptIds:
        """Return the prompt's ids."""
        return self.prompt.encode(
            [Turn("user", question, images=1)], [self.vision.count(image, self.selector)]
        )


@dataclass(frozen=True)
class MeasuredAnswer:
    """Milliseconds of one answer: one for each of :data:`STAGES`, and one for each token after the first."""

    stages: tuple[float, ...]
    steps: tuple[float, ...]

    @property
    def first_token(self) -> float:
        """TTFT: from the image's file to the first token."""
        return sum(self.stages)

    def total(self, tokens: int) -> float:
        """Return the time until ``tokens`` tokens are there, at most as many as were made."""
        return self.first_token + sum(self.steps[: tokens - 1])


@dataclass(frozen=True)
class Measured:
    """The answers of one variant in the order of rounds, and the process's peak memory once it had answered first.

    ``first`` is that answer, before all rounds: it waits for what is loaded or reserved only once it is used.
    ``peak_bytes`` counts what was loaded before it, too: the variants share a process. ``tiles`` are the image's,
    ``picks`` how often the selector ran.
    """

    variant: Variant
    tiles: int
    picks: int
    visual_tokens: int
    prompt_tokens: int
    answers: tuple[MeasuredAnswer, ...]
    peak_bytes: int
    first: MeasuredAnswer


def measure(
    variants: Sequence[Variant],
    workload: Workload,
    runs: int,
    warmup: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Measured]:
    """Answer ``runs`` times with every variant in turn, after ``warmup`` unmeasured rounds.

    Every answer starts from an empty cache: none of the prompt is reused from the one before. Rounds alternate the
    order of the variants. ``progress`` is told the number of finished rounds.

    Raises:
        UserError: the image or the question cannot be used.
    """
    peaks: list[int] = []
    first = []
    for variant in variants:
        first.append(answer(variant, workload))
        peaks.append(peak_bytes())
    answers: list[list[MeasuredAnswer]] = [[] for _ in variants]
    order = list(range(len(variants)))
    for done in range(warmup - 1 + runs):
        for i in order if done % 2 == 0 else reversed(order):
            timed = answer(variants[i], workload)
            if done >= warmup - 1:
                answers[i].append(timed)
        progress(done + 1)
    return [
        _measured(variant, workload, tuple(found), peak, cold)
        for variant, found, peak, cold in zip(variants, answers, peaks, first, strict=True)
    ]


def counted_tiles(manifest: Manifest, pixels: npt.NDArray[np.uint8]) -> int:
    """Return the tiles that the encoder's cost is counted for; none of an image that is smaller than the largest."""
    patches = manifest.preprocessing.patches
    is_smaller = patches is not None and pixels.shape[1] < most_dimensions(patches)[PATCHES]
    return 0 if is_smaller else len(pixels)


def _measured(
    variant: Variant,
    workload: Workload,
    answers: tuple[MeasuredAnswer, ...],
    peak: int,
    first: MeasuredAnswer,
) -> Measured:
    (image,) = variant.vision.read([workload.image])
    prompt = variant.encode(workload.question, image)
    rows, keep = (
        groups_of(variant.bundle.manifest, image).valid.sum(axis=1),
        variant.selector and variant.selector.keep,
    )
    picks = 0 if keep is None else int((rows > keep).sum())
    tiles = counted_tiles(variant.bundle.manifest, image.pixels)
    return Measured(variant, tiles, picks, prompt.visual_tokens, len(prompt), answers, peak, first)


def answer(variant: Variant, workload: Workload) -> MeasuredAnswer:
    """Answer once, greedily, and return what each part took: a backend ends each stage before it returns."""
    vision = variant.vision
    sampler = Sampler(forbidden=variant.bundle.manifest.prompt.forbidden_ids)
    clock = [time.perf_counter()]

    def lap(stage: str = "") -> None:
        clock.append(time.perf_counter())

    images = vision.read([workload.image])
    prompt = variant.encode(workload.question, images[0])
    lap()
    session = variant.backend.session()
    seen = vision.see(images, variant.selector, lap)
    slot = session.add(seen.tokens)
    prompt = variant.prompt.place(prompt, seen.images)
    token = sampler.next(session.extend(slot, prompt.ids, prompt.positions))
    lap()
    for at in range(workload.tokens - 1):
        token = sampler.next(session.step({slot: token}, {slot: prompt.next_position + at})[slot])
        lap()
    times = [1000 * (after - before) for before, after in pairwise(clock)]
    return MeasuredAnswer(tuple(times[: len(STAGES)]), tuple(times[len(STAGES) :]))
