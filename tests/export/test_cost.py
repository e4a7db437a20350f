"""``python -m export cost``."""

from __future__ import annotations

import pytest

from divprune_edge.errors import UserError
from divprune_edge.export.cost import show_cost


def test_the_published_ratio_and_the_honest_one(capsys: pytest.CaptureFixture[str]) -> None:
    show_cost("llava-1.5-7b", keep=56, prune=None, text_tokens=60)
    shown = capsys.readouterr().out
    assert "56 of 576 visual tokens" in shown
    assert "15.63%" in shown
    assert "20.01%" in shown
    assert "21.5%" in shown


@pytest.mark.parametrize(
    ("model", "tokens", "message"),
    [("llava-7b", 60, "neither llava-1.5-7b nor"), ("llava-1.5-7b", 0, "0 text tokens were given")],
)
def test_bad_requests(model: str, tokens: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        show_cost(model, keep=None, prune="0.9", text_tokens=tokens)
