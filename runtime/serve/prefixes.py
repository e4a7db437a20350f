"""Prefixes of prompts whose KV cache is kept: a system text, an image that is asked about again, a conversation."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from divprune_edge.processing.layout import PromptIds
from divprune_edge.runtime.backends import CacheRows

Ints = npt.NDArray[np.int64]
Marks = Sequence[tuple[int, bytes]]
"""Where the spans of visual tokens begin in a prompt's ids, and what each shows."""
_MOST = 64
"""Beginnings that are compared with every prompt."""


@dataclass(frozen=True, eq=False)
class _Prefix:
    ids: Ints
    positions: Ints
    marks: Marks
    rows: CacheRows


class PrefixCache:
    """The prefixes used last, in ``room`` bytes; a row of the cache has ``row_bytes``, in all layers."""

    def __init__(self, room: int, row_bytes: int) -> None:
        self._room, self._row_bytes = room, row_bytes
        self._held: deque[_Prefix] = deque()

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(len(prefix.ids) for prefix in self._held) * self._row_bytes

    def find(self, prompt: PromptIds, marks: Marks, most: int) -> tuple[CacheRows | None, int]:
        """Return the rows that have most in common with a prompt's first ``most``, and how many these are."""
        ids = np.array(prompt.ids, np.int64)
        best, longest = None, 0
        for prefix in self._held:
            length = min(_common(prefix, ids, prompt.positions, marks), most)
            if length > longest:
                best, longest = prefix, length
        if best is None:
            return None, 0
        self._held.remove(best)  # used last
        self._held.append(best)
        return best.rows, longest

    def wants(self, length: int, reused: int) -> bool:
        """Whether ``length`` rows are worth keeping, of which there are ``reused`` already."""
        return reused < length and length * self._row_bytes <= self._room

    def keep(self, ids: Sequence[int], positions: Ints, marks: Marks, rows: CacheRows) -> None:
        """Keep the ``rows`` of ids, and let go of what they begin with and of what was not used for the longest time.

        Args:
            ids: as many as there are rows.
            positions: int64 [ids] or [axes, ids], of at least these ids.
            marks: of the prompt.
            rows: of the cache.
        """
        length = len(ids)
        new = _Prefix(
            np.array(ids, np.int64),
            positions[..., :length],
            [mark for mark in marks if mark[0] < length],
            rows,
        )
        others = (one for one in self._held if _common(one, new.ids, new.positions, new.marks) < len(one.ids))
        self._held = deque((*others, new))
        while self.bytes > self._room or len(self._held) > _MOST:
            self._held.popleft()

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()


def _common(prefix: _Prefix, ids: Ints, positions: Ints, marks: Marks) -> int:
    """Return how many ids two prompts begin with that are the same, at the same positions, about the same images."""
    length = min(len(prefix.ids), len(ids))
    same = prefix.ids[:length] == ids[:length]
    same &= (prefix.positions[..., :length] == positions[..., :length]).reshape(-1, length).all(axis=0)
    if not same.all():
        length = int(same.argmin())
    for own, other in zip(prefix.marks, marks, strict=False):
        if own[0] >= length:
            break
        if own != other:
            return min(own[0], other[0], length)
    return length
