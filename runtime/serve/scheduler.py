"""The language model's thread: sequences join and leave between steps, and prompts are fed in pieces in between.

It alone touches the session. A turn takes in what is ready, feeds a piece of a prompt, or up to four short prompts that
have no more ids together, and decodes an id of every answer that goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.dialects import DIALECTS, row_bytes
from divprune_edge.processing.layout import PromptIds
from divprune_edge.runtime.backends import LanguageSession, Prediction
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.serve.job import Ended, Job, TextPiece
from divprune_edge.runtime.serve.metrics import Metrics
from divprune_edge.runtime.serve.prefixes import PrefixCache
from divprune_edge.runtime.serve.scores import TokenScore, TokenScores

_log = logging.getLogger("divprune_edge")
_PIECES_ALONE = 4
"""That are fed at once where nobody waits for a next token: few, as the client may leave meanwhile."""


class Scheduler(threading.Thread):
    """See the module's text.

    Args:
        pipeline: whose language model it is.
        slots: sequences at a time.
        chunk: ids of a prompt that are fed at once while others decode.
        prefix_bytes: for the caches of prompts' beginnings.
        metrics: what is counted.
        turns: held while the device computes, where another thread's graphs must wait meanwhile.
        ended: is called when the thread ends, whatever the reason.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        slots: int,
        chunk: int,
        prefix_bytes: int,
        metrics: Metrics,
        turns: AbstractContextManager[None],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(name="scheduler", daemon=True)
        self._ended = ended
        self._pipeline, self._slots, self._chunk, self._metrics = pipeline, slots, chunk, metrics
        self._turns = turns
        language = pipeline.bundle.manifest.language_model
        self.joins_between_steps = not DIALECTS[language.dialect].grows
        # Which visual tokens leave inside of it depends on the question: their rows are of no use to another one.
        self._cuts = language.schedule is not None
        element = np.dtype(language.cache_dtype).itemsize
        row = language.layers * row_bytes(language.kv_heads, language.head_dim, element)
        self._prefixes = PrefixCache(prefix_bytes, row)
        self._session: LanguageSession = pipeline.backend.session(slots)
        self._living: dict[int, Job] = {}
        self._ready: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ending = False

    def put(self, job: Job) -> None:
        """Take a prepared job; waits while there are as many ready as there are slots."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._slots or self._ending or job.gone)
            self._ready.append(job)
            self._changed.notify_all()

    def wake(self) -> None:
        """Look again, as a job is gone."""
        with self._changed:
            self._changed.notify_all()

    def end(self) -> None:
        """Answer what there is, and end."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def run(self) -> None:
        """Turn until told to end."""
        try:
            while self._has_work():
                try:
                    self._turn()
                except Exception as error:  # whatever it is, nobody waits for ever
                    self._collapse(error)
        finally:
            self.end()  # nor does the encoder, for a place among those that are ready
            self._ended()

    def _has_work(self) -> bool:
        """Wait for something to do; return whether there is, for else it is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._living or self._ending)
            return bool(self._ready or self._living)

    def _turn(self) -> None:
        with self._turns:
            self._drop()
            self._admit()
            self._prefill()
            # A cache that grows is copied when a sequence joins: then all begin together.
            if self.joins_between_steps or all(job.prefilled for job in self._living.values()):
                self._step()
        self._metrics.running.set(len(self._living))

    def _drop(self) -> None:
        """Let go of those whose client has left, and of those whose time is over."""
        now = time.monotonic()
        for job in [*self._living.values()]:
            if job.gone:
                self._remove(job)
            elif now > job.deadline:
                self._fail(job, too_late())

    def _admit(self) -> None:
        if not self.joins_between_steps and self._living:
            return
        while len(self._living) < self._slots:
            with self._changed:
                if not self._ready:
                    return
                job = self._ready.popleft()
                self._changed.notify_all()
            if job.gone:
                continue
            if time.monotonic() > job.deadline:
                job.fail(too_late())
                continue
            self._begin(job)

    def _begin(self, job: Job) -> None:
        """Give a job a slot, with the rows of its prompt that are kept."""
        assert job.prompt is not None and job.visual is not None
        # The last id is fed in any case: its logits are what the answer starts from.
        most = job.prompt.spans[0].begin if self._one_piece(job.prompt) else len(job.prompt) - 1
        try:
            rows, length = self._prefixes.find(job.prompt, job.marks, most)
            job.slot = self._session.add(job.visual.tokens, rows)
        except Exception as error:  # by now it is among neither the ready ones nor the living
            job.fail(_told(error))
            raise
        self._living[job.slot] = job
        if rows is not None:
            self._session.truncate(job.slot, length)
        job.fed = job.reused = self._session.length(job.slot)
        job.times.lap("queue")
        self._metrics.reused.inc(job.reused)

    def _prefill(self) -> None:
        """Feed prompts: as many ids as a piece has where others wait for a next token, and else four times as many.

        What fits in a piece is not parted, and a few ids count as a quarter of one: each run reads all weights.
        """
        left = self._chunk
        while (job := next((j for j in self._living.values() if not j.prefilled), None)) is not None:
            assert job.prompt is not None
            others = any(one.prefilled for one in self._living.values())
            piece = self._chunk if others else _PIECES_ALONE * self._chunk
            whole = self._one_piece(job.prompt) or not self.joins_between_steps
            end = len(job.prompt) if whole else min(job.fed + piece, len(job.prompt))
            cost = max(end - job.fed, self._chunk // 4)
            if left < self._chunk and cost > left and self.joins_between_steps:
                return
            left -= cost
            part = slice(job.fed, end)
            try:
                prediction = self._session.extend(
                    job.slot,
                    job.prompt.ids[part],
                    job.prompt.positions[..., part],
                    images=job.prompt.images,
                )
            except UserError as error:
                self._fail(job, error)
                continue
            job.fed = end
            if job.prefilled:
                self._metrics.first_token.observe(job.times.first())
                # What follows the last id is valid until the session's next call, which keeping its rows is.
                self._take(job, prediction)
                self._remember(job)
                self._retire(job)

    def _step(self) -> None:
        going = {}
        for slot, job in [*self._living.items()]:
            if not job.prefilled or job.writer is None:
                continue
            try:
                self._session.check_room(slot, 1)
            except UserError as error:  # of this answer alone: the others go on
                self._fail(job, error)
            else:
                going[slot] = job.writer
        if not going:
            return
        began = time.perf_counter()
        ids, positions = ({slot: writer.next[at] for slot, writer in going.items()} for at in range(2))
        for slot, prediction in self._session.step(ids, positions).items():
            self._take(self._living[slot], prediction)
        for slot in going:
            self._retire(self._living.get(slot))
        self._metrics.step.observe(time.perf_counter() - began)
        self._metrics.batch.observe(len(going))

    def _take(self, job: Job, prediction: Prediction) -> None:
        """Sample a job's next id and tell its text, and that it has ended where that was the last one."""
        writer = job.writer
        assert writer is not None
        try:
            writer.take(prediction)
        except UserError as error:
            self._fail(job, error)
            return
        job.tokens += 1
        self._metrics.generated.inc()
        scores: tuple[TokenScore, ...] = ()
        text = "".join(job.pieces)
        if job.question.logprobs is not None:
            scores = self._score(job, prediction, text)
        if text or scores:
            job.tell(TextPiece(text, scores))
            job.pieces.clear()
        if writer.ended:
            job.tell(Ended(writer.result().finish_reason, job.tokens, job.reused, job.times.report()))

    def _score(self, job: Job, prediction: Prediction, text: str) -> tuple[TokenScore, ...]:
        """Score a job's last id, unless it is the one that says the end, and return what goes with ``text``."""
        writer, top = job.writer, job.question.logprobs
        assert writer is not None and top is not None
        if job.scores is None:
            job.scores = TokenScores(self._pipeline.prompts.tokenizer.model, top)
        reason = writer.result().finish_reason if writer.ended else None
        if reason != "stop":
            job.scores.add(writer.next[0], prediction)
        return job.scores.take(text, rest=writer.ended and reason != "stop_string")

    def _remember(self, job: Job) -> None:
        """Keep what another question may begin with: all up to the last image, or a system text with what follows it.

        A conversation that goes on is kept once it is answered.
        """
        if job.slot not in self._living:
            return
        prompt = job.prompt
        assert prompt is not None
        if self._one_piece(prompt):
            length = prompt.spans[0].begin
        elif not job.question.opens:
            return
        else:
            length = prompt.spans[-1].begin + prompt.spans[-1].rows if prompt.spans else len(prompt)
        if self._prefixes.wants(length, job.reused) and (rows := self._session.rows(job.slot, length)):
            self._prefixes.keep(prompt.ids[:length], prompt.positions, job.marks, rows)

    def _remember_answer(self, job: Job) -> None:
        """Keep a conversation with its last answer, which the next question begins with.

        Not after the first question about images: most are the only one, and would take the room of other images.
        """
        prompt, writer = job.prompt, job.writer
        assert prompt is not None and writer is not None
        if prompt.spans and (job.question.opens or self._one_piece(prompt)):
            return
        length = self._session.length(job.slot)
        if self._prefixes.wants(length, job.reused) and (rows := self._session.rows(job.slot, length)):
            answer = writer.result().token_ids[: length - len(prompt)]  # the last one was not fed
            places = prompt.next_position + np.arange(len(answer))
            places = np.broadcast_to(places, (*prompt.positions.shape[:-1], len(answer)))
            positions = np.concatenate([prompt.positions, places], axis=-1)
            self._prefixes.keep((*prompt.ids, *answer), positions, job.marks, rows)

    def _one_piece(self, prompt: PromptIds) -> bool:
        """Whether a prompt is fed at once from its first image on, as its visual tokens leave on the way."""
        return self._cuts and bool(prompt.spans)

    def _retire(self, job: Job | None) -> None:
        if job is not None and job.slot in self._living and job.writer is not None and job.writer.ended:
            self._remember_answer(job)
            self._remove(job)

    def _remove(self, job: Job) -> None:
        del self._living[job.slot]
        self._session.remove(job.slot)

    def _fail(self, job: Job, error: DivpruneError) -> None:
        self._remove(job)
        job.fail(error)

    def _collapse(self, error: Exception) -> None:
        """Fail all that is in the session, and begin another one: nobody knows what that one holds."""
        if not isinstance(error, DivpruneError):
            _log.exception("The scheduler failed.")
        for job in self._living.values():
            job.fail(_told(error))
        self._living.clear()
        self._prefixes.clear()
        del self._session  # first: there may be no room for two
        self._session = self._pipeline.backend.session(self._slots)


def _told(error: Exception) -> DivpruneError:
    """Return what clients are told of an error."""
    return error if isinstance(error, DivpruneError) else internal()


def too_late() -> DivpruneError:
    """Return what those are told whose time is over."""
    return DivpruneError("The answer took longer than the server allows.", code="request-timeout")


def internal() -> DivpruneError:
    """Return what clients are told of what is ours alone to mend: nothing of the inside."""
    return DivpruneError("The server failed; its log says why.", code="server-failed")


def stopping() -> UserError:
    """Return what those are told whom a server that ends does not answer."""
    return UserError("The server is being stopped: ask again in a moment.", code="server-stopping")
