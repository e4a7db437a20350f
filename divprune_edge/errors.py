"""What can go wrong in a way that is ours to explain, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any


class DivpruneError(Exception):
    """Something that ends the command. The message is one sentence; command lines print it as it is.

    Args:
        message: the sentence.
        code: what kind of mistake it is, such as ``image-too-large``: sentences get better, codes stay, so that
            scripts, tests and guides hold on to them.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it cross from one process to another, code and all."""
        return partial(type(self), code=self.code), self.args


class UserError(DivpruneError):
    """A mistake that the user can mend.

    The message names the value, what was expected and what to do. Command lines exit with code 2; the Python
    API raises it.
    """

    exit_code = 2


class UserTypeError(UserError, TypeError):
    """A mistake in the type of an argument, or in its name: what Python programs know as a TypeError."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, else an empty string."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def either(names: Iterable[str]) -> str:
    """Return ``a, b or c``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
