"""Sets of ids as ranges: a padded vocabulary has thousands of rows without a token, and a range costs nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

MOST_IDS = 1 << 24
"""More ids than any vocabulary has."""


class Ids(Sequence[int]):
    """Ids in ascending order, each once, kept as inclusive ranges; equal to a tuple of the same ids.

    Args:
        entries: ids and inclusive ranges ``[first, last]`` in any order.

    Raises:
        ValueError: something else, or an id outside of 0 … 2^24 - 1.
    """

    __slots__ = ("_starts", "ranges")

    def __init__(self, entries: Iterable[Any] = ()) -> None:
        merged: list[tuple[int, int]] = []
        for first, last in sorted(map(_range, entries)):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        self.ranges = tuple(merged)
        starts = [0]
        for first, last in merged:
            starts.append(starts[-1] + last - first + 1)
        self._starts = starts

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int):
            return False
        at = bisect_right(self.ranges, (value, MOST_IDS)) - 1
        return at >= 0 and self.ranges[at][0] <= value <= self.ranges[at][1]

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(index)
        run = bisect_right(self._starts, at) - 1
        return self.ranges[run][0] + at - self._starts[run]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            return self.ranges == other.ranges
        return isinstance(other, tuple) and len(other) == len(self) and all(map(int.__eq__, self, other))

    def __hash__(self) -> int:
        return hash(self.ranges)

    def __repr__(self) -> str:
        return f"Ids({self.entries()})"

    def entries(self) -> list[int | list[int]]:
        """Return runs of three or more ids as ``[first, last]``, all others as they are."""
        found: list[int | list[int]] = []
        for first, last in self.ranges:
            found.extend([[first, last]] if last - first > 1 else range(first, last + 1))
        return found


def _range(entry: Any) -> tuple[int, int]:
    ends = list(entry) if isinstance(entry, (list, tuple)) else [entry, entry]
    if len(ends) != 2 or not all(type(end) is int for end in ends):
        raise ValueError(
            f"{str(entry)[:60]} is not a range [first, last]" if ends != [entry, entry] else _no_id(entry)
        )
    first, last = ends
    if not 0 <= first <= last < MOST_IDS:
        raise ValueError(
            f"{str(entry)[:60]} is not a range of ids" if ends != [entry, entry] else _no_id(entry)
        )
    return first, last


def _no_id(entry: Any) -> str:
    return f"{str(entry)[:60]} is not an id from 0 to {MOST_IDS - 1}"
