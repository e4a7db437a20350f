"""Times of the stages of an answer."""

from __future__ import annotations

import time


class Stopwatch:
    """Milliseconds; ``preprocess`` may have begun before."""

    def __init__(self, preprocess_ms: float = 0.0) -> None:
        self._started = self._last = time.perf_counter()
        self._before = preprocess_ms
        self._stages = {"preprocess": preprocess_ms, "vision": 0.0, "select": 0.0}

    def lap(self, stage: str) -> None:
        """Count what has passed since the last lap to ``stage``."""
        now = time.perf_counter()
        self._stages[stage] += (now - self._last) * 1000
        self._last = now

    @property
    def stages(self) -> dict[str, float]:
        """What has been counted so far."""
        return dict(self._stages)

    @property
    def total(self) -> float:
        """Everything since the start, counted or not."""
        return self._before + (time.perf_counter() - self._started) * 1000
