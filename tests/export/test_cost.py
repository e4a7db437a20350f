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


def test_llava_interleave(capsys: pytest.CaptureFixture[str]) -> None:
    """Per patch of so400m: 26 layers of 4 h² + 2 n h + 2 h m multiply-accumulates, and the convolution."""
    show_cost("llava-interleave-qwen-0.5b", keep=None, prune="0.9", text_tokens=60)
    shown = capsys.readouterr().out
    assert "73 of 729 visual tokens" in shown
    layer = 4 * 1152**2 + 2 * 729 * 1152 + 2 * 1152 * 4304
    assert f"{2 * 729 * (26 * layer + 1152 * 3 * 14**2) / 1e12:.4f}" in shown
    show_cost("llava-interleave-qwen-7b", keep=73, prune=None, text_tokens=60)
    assert "73 of 729 visual tokens" in capsys.readouterr().out


def test_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    """All tokens enter where no budget is given; by the convention of its paper, PyramidDrop costs 46.56 %."""
    show_cost("llava-1.5-7b", keep=None, prune=None, text_tokens=60, schedule="pyramiddrop")
    shown = capsys.readouterr().out
    assert "576 of 576 visual tokens" in shown
    assert "46.56%" in shown
    assert "layers 16-23    144 visual tokens" in shown
    assert "scores, TFLOP" in shown
    assert "without reading scores" in shown
    assert "more time than its operations say" not in " ".join(shown.split())
    show_cost("llava-1.5-7b", keep=None, prune=None, text_tokens=60, schedule="aim")
    assert "more time than its operations say" in " ".join(capsys.readouterr().out.split())
    show_cost("llava-1.5-7b", keep=144, prune=None, text_tokens=60)
    assert "scores" not in capsys.readouterr().out
    show_cost("llava-1.5-7b", keep=144, prune=None, text_tokens=60, schedule="fastv")
    assert "layers  2-31     72 visual tokens" in capsys.readouterr().out
    with refused("schedule-unknown", "fastw", "fastv"):
        show_cost("llava-1.5-7b", keep=None, prune=None, text_tokens=60, schedule="fastw")


@pytest.mark.parametrize(
    ("model", "tokens", "code", "given"),
    [("llava-7b", 60, "model-unknown", "llava-7b"), ("llava-1.5-7b", 0, "count-out-of-range", 0)],
)
def test_bad_requests(model: str, tokens: int, code: str, given: object) -> None:
    with refused(code, given):
        show_cost(model, keep=None, prune="0.9", text_tokens=tokens)
