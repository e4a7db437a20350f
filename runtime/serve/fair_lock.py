"""One device for two threads that take turns: a plain lock would let the one that has it take it again at once."""

from __future__ import annotations

import threading
from types import TracebackType


class FairLock:
    """A lock whose waiters get it in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given = self._served = 0

    def __enter__(self) -> None:
        with self._changed:
            own = self._given
            self._given += 1
            self._changed.wait_for(lambda: self._served == own)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()
