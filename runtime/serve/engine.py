"""What answers: the queue, the encoder's thread and the language model's, opened and closed together."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext

from divprune_edge.errors import UserError
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.serve.encoder import Encoder
from divprune_edge.runtime.serve.fair_lock import FairLock
from divprune_edge.runtime.serve.job import Conversation, Ended, Event, Failed, Job, PromptReady
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.metrics import Metrics
from divprune_edge.runtime.serve.scheduler import Scheduler, internal, stopping
from divprune_edge.runtime.serve.waiting import FairQueue

CHUNK = 256
"""Ids of a prompt that are fed at once while others decode."""


class Engine:
    """Takes questions from any thread and answers them.

    Args:
        pipeline: loaded once; its selector is the default.
        limits: how many at a time, and how much of each.
        chunk: see :class:`~divprune_edge.runtime.serve.scheduler.Scheduler`.
        image_cache: bytes for visual tokens of images that were asked about.
        prefix_cache: bytes for the KV cache of prompts' beginnings.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        limits: ServerLimits,
        *,
        chunk: int = CHUNK,
        image_cache: int = 256 << 20,
        prefix_cache: int = 256 << 20,
    ) -> None:
        self.pipeline, self.limits, self.metrics = pipeline, limits, Metrics()
        turns = nullcontext() if pipeline.backend.computes_beside else FairLock()
        self._waiting = FairQueue()
        self._scheduler = Scheduler(
            pipeline,
            slots=limits.slots,
            chunk=chunk,
            prefix_bytes=prefix_cache,
            metrics=self.metrics,
            turns=turns,
            ended=self._end_of_thread,
        )
        self._encoder = Encoder(
            pipeline,
            self._waiting,
            self._scheduler.put,
            limits=limits,
            cache_bytes=image_cache,
            metrics=self.metrics,
            turns=turns,
            ended=self._end_of_thread,
        )
        self._in_flight: set[Job] = set()
        self.metrics.in_flight.set_function(lambda: len(self._in_flight))
        self._guard = threading.Lock()
        self._stopping = self._lost = False
        self._seconds = 1.0  # of an answer, of late

    @property
    def joins_between_steps(self) -> bool:
        """Whether a sequence may join those that are being decoded."""
        return self._scheduler.joins_between_steps

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._scheduler.is_alive() and self._encoder.is_alive() and not self._stopping

    @property
    def lost(self) -> bool:
        """Whether a thread has ended that should not have: nothing will be answered any more."""
        return self._lost

    @property
    def full(self) -> bool:
        """Whether one more question would have to wait behind as many as may."""
        return len(self._in_flight) >= self.limits.slots + self.limits.queue

    @property
    def retry_after(self) -> int:
        """Seconds until it is worth asking again, from 1 to 60."""
        turns = len(self._in_flight) / self.limits.slots
        return min(max(math.ceil(turns * self._seconds), 1), 60)

    def start(self) -> None:
        """Begin to answer."""
        self._encoder.start()
        self._scheduler.start()

    def refuse(self, client: str) -> UserError | None:
        """Return why no question of a client is taken at present, if none is."""
        if self._stopping or self._lost:
            return stopping()
        return self.busy() if self.full and not self._waiting.yields_to(client) else None

    def submit(
        self, question: Conversation, client: str, tell: Callable[[Event], None], began: float | None = None
    ) -> Job:
        """Let a question wait for its answer, of which ``tell`` hears, from other threads.

        Its time runs since ``began``, on :func:`time.monotonic`'s clock, or else from now on.

        Raises:
            UserError: the server is full, or about to stop.
        """
        job: Job

        def told(event: Event) -> None:
            self._note(job, event)
            tell(event)

        began = time.monotonic() if began is None else began
        job = Job(question, client, began + self.limits.request_seconds, told)
        with self._guard:
            if (refusal := self.refuse(client)) is not None:
                raise refusal
            full = self.full
            dropped = self._waiting.put(job, full=full)
            if dropped is not job:
                self._in_flight.add(job)
        if dropped is job:
            raise self.busy()
        if dropped is not None:
            dropped.fail(self.busy())
        return job

    def leave(self, job: Job, outcome: str = "left") -> None:
        """Stop answering a question: nobody waits for it any more."""
        job.gone = True
        self._waiting.remove(job)
        self._scheduler.wake()
        self._forget(job, outcome)

    def busy(self) -> UserError:
        """Return what those are told for whom there is no place."""
        return UserError(
            f"The server has {len(self._in_flight)} questions to answer and takes no more: ask again in "
            f"{self.retry_after} s.",
            code="server-busy",
        )

    def drain(self, seconds: float) -> None:
        """Take no more questions, and answer those that there are within so many seconds; the rest is told so."""
        self._stopping = True
        self._waiting.close()
        ends = time.monotonic() + seconds
        while self._in_flight and not self._lost and time.monotonic() < ends:
            time.sleep(0.02)
        with self._guard:
            left = [*self._in_flight]
        for job in left:
            job.gone = True
            job.fail(stopping())

    def stop(self, seconds: float = 10.0) -> None:
        """Let what there is end, as :meth:`drain` does, and then the threads."""
        ends = time.monotonic() + seconds
        self.drain(seconds)
        self._scheduler.end()
        for thread in (self._encoder, self._scheduler):
            if thread.ident is not None:
                thread.join(max(ends - time.monotonic(), 5.0))

    def _end_of_thread(self) -> None:
        with self._guard:
            self._lost = self._lost or not self._stopping
            left = [*self._in_flight] if self._lost else []
        for job in left:
            job.fail(internal())

    def _note(self, job: Job, event: Event) -> None:
        if isinstance(event, PromptReady):
            self.metrics.prompt.inc(event.prompt_tokens)
            self.metrics.visual.inc(sum(len(one.kept) for one in event.media))
            self.metrics.candidates.inc(sum(one.candidates for one in event.media))
        elif isinstance(event, Ended):
            self._seconds += 0.2 * (event.timings_ms["total"] / 1000 - self._seconds)
            self._forget(job, "answered")
        elif isinstance(event, Failed):
            self._forget(job, event.error.code)

    def _forget(self, job: Job, outcome: str) -> None:
        with self._guard:
            if job not in self._in_flight:
                return
            self._in_flight.discard(job)
        self.metrics.requests.labels(outcome).inc()
