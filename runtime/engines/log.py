"""What TensorRT says. It takes the first logger of a process for good, so there is one for everybody."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

_LONGEST = 300


@cache
def logger_of(tensorrt: Any) -> Any:
    """Return this process's logger: an ``ILogger`` of the module that keeps errors, and shows the rest if asked to.

    It has ``begin(verbose=False)``, which forgets earlier errors, and ``reason()``, which tells the last two and
    forgets them.
    """

    class Log(tensorrt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.begin()

        def begin(self, *, verbose: bool = False) -> None:
            """Forget what was said."""
            self._verbose = verbose
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, from any thread."""
            severities = tensorrt.ILogger.Severity
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self._errors.append(msg)
            if self._verbose and severity != severities.VERBOSE:
                print(f"[TensorRT] {msg}", file=sys.stderr)

        def reason(self) -> str:
            """Return the last two: earlier ones are tactics that were passed over, the last may be a mere result."""
            errors, self._errors = self._errors[-2:], []
            return "; ".join(map(shorten, errors)) or "it gives no reason"

    return Log()


def shorten(message: str) -> str:
    """Return a message on one line, without its end where it is long."""
    line = " ".join(message.split()).rstrip(".")
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
