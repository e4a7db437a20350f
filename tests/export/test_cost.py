"""``python -m export cost``."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.export.cost import show_cost


def test_the_published_ratio_and_the_honest_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_cost("llava-1.5-7b", keep=56, prune=None, text_tokens=60)
    shown = capsys.readouterr().out
    assert "56 of 576 visual tokens" in shown
    assert "15.63%" in shown
    assert "20.01%" in shown
    assert "21.5%" in shown


@pytest.mark.parametrize(
    ("model", "tokens", "code", "given"),
    [("llava-7b", 60, "model-unknown", "llava-7b"), ("llava-1.5-7b", 0, "count-out-of-range", 0)],
)
def test_bad_requests(model: str, tokens: int, code: str, given: object) -> None:
    with refused(code, given):
        show_cost(model, keep=None, prune="0.9", text_tokens=tokens)
