"""The vision encoder's thread: a request's images become visual tokens, or are found among those of before.

What an image gave is kept, with what selectors picked of it: asking again about it costs no run of the encoder, and
another budget none either. Requests with nothing to encode pass those that have, between two images.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.manifest import Manifest
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.images import image_of_bytes
from divprune_edge.processing.prompt import Turn, system_turns, user_turn
from divprune_edge.processing.sources import Video
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.serve.job import Conversation, Job, Medium, PromptReady, Utterance
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.metrics import Metrics
from divprune_edge.runtime.serve.places import shown
from divprune_edge.runtime.serve.scheduler import internal, too_late
from divprune_edge.runtime.serve.waiting import FairQueue
from divprune_edge.runtime.vision import Candidates, VisualTokens

_log = logging.getLogger("divprune_edge")
FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
"""Of images in requests: those that OpenAI's take, and no rarer reader of Pillow's."""


@dataclass(eq=False)
class _Look:
    """An image as it was read, and once it was encoded what that gave."""

    image: ImageInput
    candidates: Candidates | None = None
    chosen: dict[str | None, VisualTokens] = field(default_factory=dict)
    bytes: int = 0


class _Frames(list[Any]):
    """The frames of a clip, or an image, decoded one by one as they are read: together they could be gigabytes."""

    def __init__(self, medium: Medium, most_pixels: int) -> None:
        super().__init__(medium.frames)
        self._clip, self._most_pixels = medium.clip, most_pixels

    def __getitem__(self, index: Any) -> Any:
        name = f"Frame {index + 1} of the clip" if self._clip else "The image"
        return image_of_bytes(super().__getitem__(index), name, FORMATS, self._most_pixels)


class Encoder(threading.Thread):
    """See the module's text.

    Args:
        pipeline: whose encoder and selectors these are.
        waiting: where jobs come from.
        hand_on: where they go once their prompt and visual tokens are there.
        limits: of images and prompts.
        cache_bytes: for what images gave; 0 keeps nothing.
        metrics: what is counted.
        turns: as the scheduler's.
        ended: as the scheduler's.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        waiting: FairQueue,
        hand_on: Callable[[Job], None],
        *,
        limits: ServerLimits,
        cache_bytes: int,
        metrics: Metrics,
        turns: AbstractContextManager[None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(name="encoder", daemon=True)
        self._ended = ended
        self._waiting, self._hand_on, self._limits = waiting, hand_on, limits
        self._room, self._metrics, self._turns = cache_bytes, metrics, turns
        self._vision, self._manifest = pipeline.vision, pipeline.bundle.manifest
        self._row_bytes = _row_bytes(self._manifest)
        self._pipelines = {None if pipeline.selector is None else pipeline.selector.id: pipeline}
        self._pipeline = pipeline
        self._looks: OrderedDict[tuple[bytes, bool], _Look] = OrderedDict()

    def run(self) -> None:
        """Prepare job after job, until the queue is closed."""
        try:
            while (job := self._waiting.get()) is not None:
                self._handle(job)
        finally:
            self._ended()

    def _handle(self, job: Job) -> None:
        try:
            self._check(job)
            self._prepare(job)
        except _Gone:
            pass
        except DivpruneError as error:
            job.fail(error)
        except Exception:  # whatever it is, the next request is answered
            _log.exception("A request could not be prepared.")
            job.fail(internal())
        else:
            self._hand_on(job)
        finally:
            self._trim()

    def _check(self, job: Job) -> None:
        """Go on with a job only where somebody waits for it."""
        if job.gone:
            raise _Gone
        if time.monotonic() > job.deadline:
            raise too_late()

    def _let_pass(self, job: Job) -> None:
        """Between two images of a job, prepare those that have none to encode."""
        self._check(job)
        for other in self._waiting.jobs():
            keys = _keys(other.question)
            known = all(key in self._looks and self._looks[key].candidates is not None for key in keys)
            if known and self._waiting.remove(other):
                self._handle(other)

    def _prepare(self, job: Job) -> None:
        """Read a job's images, make its prompt, and see what its selector keeps."""
        job.times.lap("queue")
        question, media = job.question, job.question.media
        pipeline = self._pruning(job)
        keys = _keys(question)
        looks = [self._look(job, medium, key) for medium, key in zip(media, keys, strict=True)]
        inputs = [look.image for look in looks]
        prompt = pipeline.encode_prompt(_turns(question.utterances, inputs), inputs)
        if len(prompt) > self._limits.prompt_tokens:
            raise UserError(
                f"The prompt has {len(prompt)} tokens, this server takes {self._limits.prompt_tokens}: ask a shorter "
                "question, about fewer images, or keep fewer visual tokens.",
                code="prompt-too-long",
            )
        for look in looks:
            self._encode(job, look)
        job.times.lap("encode")
        with self._turns:
            parts = [self._choose(pipeline, look) for look in looks]
            job.visual = self._vision.join(parts)
            job.times.lap("select")
        seen = job.visual.images
        job.prompt = pipeline.prompts.place(prompt, seen)
        spans = iter(job.prompt.spans)
        name = b"" if pipeline.selector is None else pipeline.selector.id.encode()
        job.marks = tuple(
            (next(spans).begin, digest + bytes([alone]) + name)
            for (digest, alone), image in zip(keys, seen, strict=True)
            for _ in image.counts
        )
        job.question = question.without_media()
        job.writer = pipeline.writer(job.prompt, question.decoding, job.pieces.append)
        facts = self._manifest.preprocessing
        tokens = self._manifest.vision_encoder.uncut or self._manifest.candidates
        places = (shown(look.image, image, tokens, facts) for look, image in zip(looks, seen, strict=True))
        job.tell(PromptReady(len(job.prompt), tuple(places)))

    def _pruning(self, job: Job) -> Pipeline:
        selector = job.question.selector
        name = None if selector is None else selector.id
        if name not in self._pipelines:
            self._pipelines[name] = self._pipeline.with_selector(name or "none")
        return self._pipelines[name]

    def _look(self, job: Job, medium: Medium, key: tuple[bytes, bool]) -> _Look:
        """Return what is known of an image or clip; one that is new is decoded."""
        found = self._looks.get(key)
        if found is None:
            self._let_pass(job)
            image = self._read(medium, key[1])
            found = _Look(image, bytes=sum(array.nbytes for array in image.inputs.values()))
            if self._room:
                self._looks[key] = found
        else:
            self._looks.move_to_end(key)
        return found

    def _read(self, medium: Medium, alone: bool) -> ImageInput:
        frames = _Frames(medium, self._limits.image_pixels)
        return self._vision.read_one(Video(frames, fps=medium.fps) if medium.clip else frames[0], alone=alone)

    def _encode(self, job: Job, look: _Look) -> None:
        if look.candidates is not None:
            self._metrics.images_cached.inc()
            return
        self._let_pass(job)
        with self._turns:
            found = self._vision.encode([look.image], self._manifest.selectors)
        self._metrics.images_encoded.inc()
        # Pixels are not looked at again.
        look.image = replace(look.image, pixels=np.empty(0, np.uint8), further={})
        look.candidates = replace(found, images=[look.image])
        look.bytes = found.valid.size * self._row_bytes

    def _choose(self, pipeline: Pipeline, look: _Look) -> VisualTokens:
        selector = pipeline.selector
        name = None if selector is None else selector.id
        if name not in look.chosen:
            assert look.candidates is not None
            look.chosen[name] = self._vision.select(look.candidates, selector)
            look.bytes += look.chosen[name].length * self._row_bytes
        return look.chosen[name]

    def _trim(self) -> None:
        """Let go of what was not asked about for the longest time, until there is room for the rest."""
        held = sum(look.bytes for look in self._looks.values())
        while self._looks and held > self._room:
            held -= self._looks.popitem(last=False)[1].bytes
        self._metrics.cache_bytes.set(held)


class _Gone(Exception):
    """Nobody waits for a job any more."""


def _keys(question: Conversation) -> list[tuple[bytes, bool]]:
    """Return by what each image or clip is known: one that is alone in its prompt may be read otherwise."""
    alone = sum(not medium.clip for medium in question.media) == 1
    return [(medium.key, medium.clip or alone) for medium in question.media]


def _turns(utterances: tuple[Utterance, ...], inputs: list[ImageInput]) -> list[Turn]:
    turns, left = [], iter(inputs)
    for one in utterances:
        new = [next(left) for _ in one.media]
        if one.role == "system":
            turns += system_turns(one.text)
        else:
            turns.append(user_turn(one.text, new) if one.role == "user" else Turn(one.role, one.text))
    return turns


def _row_bytes(manifest: Manifest) -> int:
    """Return the bytes of a visual token and its signals, where the latter are counted for each token."""
    total = 0
    for tensor in manifest.features.outputs:
        width = math.prod(size for size in tensor.shape[2:] if isinstance(size, int))
        total += width * np.dtype(tensor.dtype).itemsize
    return total
