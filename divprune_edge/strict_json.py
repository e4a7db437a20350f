"""JSON from outside: one reader for every file, so that each says the same of what cannot be meant.

JSON allows what Python's reader makes trouble of, and Python's reader allows what is no JSON: a hundred thousand
brackets end in a RecursionError, ``NaN`` and ``1e999`` become sizes, the later of two equal names wins in silence, half
of a surrogate pair becomes a text that cannot be written anywhere. All of it is refused here, in a clause; but half a
pair becomes U+FFFD, as a tokenizer makes of bytes that are no character.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError

MOST_BYTES = 16 << 20
"""Of one file: the index of a checkpoint of 700 GB has 9 MB."""
DEEPEST = 64
LONGEST_NUMBER = 40

_SURROGATE = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """What is wrong with a JSON text, as a clause."""


def parse_json(text: str, *, lenient: bool = False) -> Any:
    """Return what ``text`` says.

    Args:
        text: a whole JSON text.
        lenient: allow control characters in texts, equal names and NaN, as other people's tools write them.

    Raises:
        JsonError: not JSON, or one of what this module refuses.
    """
    try:
        data = json.loads(
            text,
            strict=not lenient,
            object_pairs_hook=None if lenient else _unique,
            parse_constant=None if lenient else _constant,
            parse_int=_integer,
            parse_float=None if lenient else _float,
        )
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("it is nested too deep") from None
    except ValueError as error:
        raise JsonError(str(error)) from None
    _check_depth(data)
    return _mended(data) if _SURROGATE.search(text) else data


def read_text(path: Path, *, code: str, advice: str, most: int = MOST_BYTES) -> str:
    """Return the text of a regular file.

    Raises:
        UserError: no such file, something else than a file, more than ``most`` bytes, or not UTF-8; with ``code`` and
            ``advice``, such as ``download it again``.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise JsonError("it is not a file")
        if status.st_size > most:
            raise JsonError(f"it has {status.st_size} bytes, at most {most} are read")
        with path.open("rb") as file:
            return file.read(most + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"'{path}' cannot be read ({reason}): {advice}.", code=code) from None


def read_json(
    path: Path,
    *,
    code: str,
    advice: str,
    unreadable: str | None = None,
    most: int = MOST_BYTES,
    lenient: bool = False,
) -> Any:
    """Return what a JSON file says.

    Args:
        path: the file.
        code: of the error.
        advice: what to do about it, such as ``export the bundle again``.
        unreadable: another code for a file that cannot be read at all.
        most: bytes that it may have.
        lenient: see :func:`parse_json`.

    Raises:
        UserError: as :func:`read_text` and :func:`parse_json`.
    """
    text = read_text(path, code=unreadable or code, advice=advice, most=most)
    try:
        return parse_json(text, lenient=lenient)
    except JsonError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}): {advice}.", code=code) from None


def well_formed(text: str) -> str:
    """Return ``text`` with U+FFFD for each half of a surrogate pair that has no other half."""
    if _can_be_written(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a file; a name that no file can have is none."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib raises on a name of 300 characters


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether there is such a folder; a name that no folder can have is none."""
    return os.path.isdir(path)  # noqa: PTH112


def _can_be_written(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"it says '{_short(twice)}' twice")
    return data


def _constant(name: str) -> Any:
    raise JsonError(f"it holds {name}, which is no number")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise JsonError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise JsonError(f"it holds {_short(digits)}, which is too large")
    return value


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}…"


def _check_depth(data: Any) -> None:
    level = [data] if isinstance(data, (dict, list)) else []
    for _ in range(DEEPEST):
        inner = (value for outer in level for value in (outer.values() if isinstance(outer, dict) else outer))
        level = [value for value in inner if isinstance(value, (dict, list))]
        if not level:
            return
    raise JsonError("it is nested too deep")


def _mended(data: Any) -> Any:
    if isinstance(data, str):
        return well_formed(data)
    if isinstance(data, dict):
        return {well_formed(name): _mended(value) for name, value in data.items()}
    return [_mended(value) for value in data] if isinstance(data, list) else data
