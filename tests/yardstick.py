"""A limit on time that this machine sets itself: a test compares within one run and knows no seconds."""

from __future__ import annotations

import time
from functools import cache

LONG = 450
"""Units that nothing from outside may take: less than five seconds where a unit takes ten milliseconds."""


@cache
def unit() -> float:
    """Processor seconds of a fixed piece of work, the least of a few tries."""

    def once() -> float:
        began = time.process_time()
        sum(range(1_000_000))
        return time.process_time() - began

    return min(once() for _ in range(5))
