"""The engine that does nothing fits the backend."""

from __future__ import annotations

from typing import Any

import pytest

from bench.decode_overhead import language_info, measure


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_steps_are_measured(dialect: Any) -> None:
    assert all(len(times) == 3 for times in measure(language_info(dialect, 256, 64, 2), 4))
