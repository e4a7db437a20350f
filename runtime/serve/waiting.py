"""The queue of requests: bounded, and fair between those who ask."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

from divprune_edge.runtime.serve.job import Job


class FairQueue:
    """Jobs of several clients, whose turns come one after the other, however many each has sent.

    Where the server is full, the newest job of the client with the most of them gives its place to one of a client that
    has fewer: nobody fills the line for all others.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def put(self, job: Job, *, full: bool) -> Job | None:
        """Let a job wait; return the one that there is no place for, which may be itself, where the server is full."""
        with self._changed:
            dropped = self._make_room(job.client) if full else None
            if (full and dropped is None) or self._closed:
                return job
            self._lines.setdefault(job.client, deque()).append(job)
            self._changed.notify()
            return dropped

    def get(self) -> Job | None:
        """Wait for the next job, and return it; None once the line is closed and empty."""
        with self._changed:
            while not self._lines:
                if self._closed:
                    return None
                self._changed.wait()
            client, line = next(iter(self._lines.items()))
            job = line.popleft()
            del self._lines[client]
            if line:  # to the end of the clients
                self._lines[client] = line
            return job

    def jobs(self) -> list[Job]:
        """Return all that wait at present."""
        with self._changed:
            return [job for line in self._lines.values() for job in line]

    def remove(self, job: Job) -> bool:
        """Take a job out; return whether it was still there."""
        with self._changed:
            line = self._lines.get(job.client)
            if line is None or job not in line:
                return False
            line.remove(job)
            if not line:
                del self._lines[job.client]
            return True

    def close(self) -> None:
        """Take no more jobs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def yields_to(self, client: str) -> bool:
        """Whether another client has so many jobs here that it would give a place to one of this client."""
        with self._changed:
            return self._greedy(client) is not None

    def _make_room(self, client: str) -> Job | None:
        greedy = self._greedy(client)
        if greedy is None:
            return None
        dropped = self._lines[greedy].pop()
        if not self._lines[greedy]:
            del self._lines[greedy]
        return dropped

    def _greedy(self, client: str) -> str | None:
        """Return who has the most jobs, if these are more than this client would have with one more."""
        own = len(self._lines.get(client, ()))
        name, line = max(self._lines.items(), key=lambda item: len(item[1]), default=("", deque[Job]()))
        return name if len(line) > own + 1 else None
