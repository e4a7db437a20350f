"""Memory that is let go of goes back to the system, so that what a server holds says what it needs."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_ALONE = 1 << 20
"""Bytes from which on an allocation is a mapping of its own."""


def give_back() -> None:
    """Set the GNU C library's allocator so; others are left as they are.

    By itself it learns from the first large blocks that are freed to keep such blocks on its heaps, where a small one
    behind them holds them for good (``mallopt(3)``).
    """
    with suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(option, _ALONE)


def collect_often() -> None:
    """Look for what nobody refers to any more among what requests made, not among what was loaded for all of them.

    An error and the frames that it came through refer to each other, and such a frame may hold a request's images.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1000, 10, 10)
