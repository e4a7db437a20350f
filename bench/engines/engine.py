"""What an engine measures, and what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Times = dict[str, float]
"""Milliseconds: ``vision``, ``select``, ``prefill`` (until the first logits) and ``decode`` (one token)."""


@dataclass(frozen=True)
class SpeedJob:
    """One engine with its settings.

    ``folder`` holds what the engine loads; ``visual`` are the budgets to measure (all of them: not pruned);
    ``vision`` is False where an engine runs the language model alone, on as many text tokens.
    """

    engine: str
    label: str
    folder: str
    checkpoint: str
    options: dict[str, Any]
    visual: tuple[int, ...]
    all_visual: int
    text: int
    decode: int
    threads: int
    image: int
    rows: int
    layers: int


class Engine(Protocol):
    """A loaded engine."""

    def versions(self) -> dict[str, str]:
        """Return what it is made of."""
        ...

    def measure(self, visual: int) -> Times:
        """Answer once with a budget of ``visual`` tokens and return the times."""
        ...


class Clock:
    """Milliseconds from lap to lap."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return what has passed since the last lap."""
        now = time.perf_counter()
        passed, self._last = 1e3 * (now - self._last), now
        return passed


def pixels(job: SpeedJob) -> npt.NDArray[np.uint8]:
    """Return the image, uint8 [1, H, W, 3]."""
    return np.random.default_rng(0).integers(0, 256, (1, job.image, job.image, 3), dtype=np.uint8)


def text_ids(job: SpeedJob, count: int | None = None) -> npt.NDArray[np.int64]:
    """Return the ids of the prompt's text."""
    low = min(10, job.rows - 1)
    return np.random.default_rng(1).integers(low, job.rows, count or job.text).astype(np.int64)


def decode_ms(job: SpeedJob, step: Callable[[int], object]) -> float:
    """Return the mean milliseconds of ``step(id)`` over the tokens to decode."""
    ids = [int(i) for i in np.random.default_rng(2).integers(min(10, job.rows - 1), job.rows, job.decode)]
    clock = Clock()
    for i in ids:
        step(i)
    return clock.lap() / len(ids)
