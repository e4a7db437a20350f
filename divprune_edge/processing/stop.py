"""Stop strings, also where they span several tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on until one of ``strings`` appears; text that may be the start of one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self._found = False

    def found(self) -> bool:
        """Return whether a stop string has ended the text."""
        return self._found

    def push(self, text: str) -> str:
        """Return the part of the text so far that is certain to come before any stop string."""
        if not self._strings:
            return text
        self._held += text
        hits = [self._held.index(string) for string in self._strings if string in self._held]
        if hits:
            self._found = True
            return self._release(min(hits))
        return self._release(len(self._held) - self._overlap())

    def finish(self) -> str:
        """Return the text still held back, which no stop string completed."""
        return "" if self._found else self._release(len(self._held))

    def _release(self, count: int) -> str:
        released, self._held = self._held[:count], self._held[count:]
        return released

    def _overlap(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(len(string) for string in self._strings) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(string.startswith(self._held[-size:]) for string in self._strings):
                return size
        return 0
