"""What a mistake is pinned by: its code and the values that the user gave, not the sentence around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from divprune_edge.errors import DivpruneError, UserError


@contextmanager
def refused(code: str, *values: object) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expect a user's mistake of this kind, whose sentence names these values."""
    with pytest.raises(UserError) as error:
        yield error
    assert_names(error.value.code, str(error.value), code, values)


@contextmanager
def failed(code: str, *values: object) -> Iterator[pytest.ExceptionInfo[DivpruneError]]:
    """Expect a failure of this kind that is not the user's mistake, whose sentence names these values."""
    with pytest.raises(DivpruneError) as error:
        yield error
    assert not isinstance(error.value, UserError), error.value
    assert_names(error.value.code, str(error.value), code, values)


def assert_told(exit_code: int, errors: str, code: str, *values: object, expected: int = 2) -> None:
    """Check a command that was refused: one last line with this code and these values, and exit code 2."""
    assert exit_code == expected, errors
    assert "Traceback" not in errors
    told = [line for line in errors.splitlines() if re.match(r"error\b", line)]
    assert len(told) == 1, errors
    assert errors.endswith(f"{told[0]}\n")
    line = re.fullmatch(r"error\[([^]]*)\]: (.+)", told[0])
    assert line is not None, errors
    assert_names(line[1], line[2], code, values)


def assert_names(found: str, sentence: str, code: str, values: tuple[object, ...]) -> None:
    """Check a code, and that a sentence names each value as a word of its own."""
    assert found == code, f"[{found}] {sentence}"
    for value in map(str, values):
        before, after = r"(?<!\w)" if value[:1].isalnum() else "", r"(?!\w)" if value[-1:].isalnum() else ""
        assert re.search(before + re.escape(value) + after, sentence), f"{value!r} is not in: {sentence}"
