"""Types of what the Python API is given: one sentence that names the argument, before anything is done with it."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any

from divprune_edge.errors import UserTypeError

_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((Integral,), "a whole number"),
    "float": ((Real,), "a number"),
    "str": ((str,), "a text"),
    "bool": ((bool,), "True or False"),
    "path": ((str, os.PathLike), "a path"),
}


def check_type(name: str, value: Any, kind: str) -> None:
    """Check an argument.

    Args:
        name: of the argument.
        value: what it is.
        kind: ``int``, ``float``, ``str``, ``bool``, ``path``, and with `` | None`` behind it None as well. A bool is no
            number, though Python takes it for one; numbers of NumPy are numbers.

    Raises:
        UserTypeError: it is something else.
    """
    plain = kind.removesuffix(" | None")
    types, words = _KINDS[plain]
    if (value is None and plain != kind) or (
        isinstance(value, types) and (plain == "bool" or not isinstance(value, bool))
    ):
        return
    raise wrong_type(name, value, words + (" or None" if plain != kind else ""))


def wrong_type(name: str, value: Any, expected: str) -> UserTypeError:
    """Return the error about an argument that is not what was ``expected``."""
    shown = repr(value)
    shown = f" {shown}" if len(shown) <= 40 and "\n" not in shown else ""
    return UserTypeError(
        f"{name} is{shown} of type {type(value).__name__}, expected {expected}.", code="argument-type"
    )
