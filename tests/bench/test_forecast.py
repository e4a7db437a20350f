"""Forecasts from published times: what they are drawn through, and that the documentation has them."""

from __future__ import annotations

import pytest
from conftest import ROOT

from bench import forecast
from bench.forecast import PUBLISHED, WORKLOADS, Published

boards = pytest.mark.parametrize("board", PUBLISHED, ids=lambda board: f"{board.target} {board.language}")


@boards
def test_a_forecast_of_what_was_published_is_that(board: Published) -> None:
    assert forecast.prefill_ms(board, forecast.SHORT) == pytest.approx(board.short)
    assert forecast.prefill_ms(board, forecast.LONG) == pytest.approx(board.long)
    photograph = forecast.Workload("photograph", 1, forecast.SEEN)
    assert forecast.vision_ms(board, photograph) == pytest.approx(board.vision)


@boards
@pytest.mark.parametrize("work", WORKLOADS, ids=lambda work: work.title)
def test_pruning_saves_less_than_prefill(board: Published, work: forecast.Workload) -> None:
    full, some, most = (forecast.first_token_ms(board, work, prune) for prune in (None, *forecast.PRUNED))
    assert full > some > most > forecast.vision_ms(board, work)
    assert work.prompt(None) == 1995


def test_flops_foretell_a_published_speedup() -> None:
    """A tenth too high at most: what does not shrink with the prompt is not in them."""
    for _, published, counted in forecast.dart_on_thor():
        assert published < counted < 1.1 * published


def test_the_documentation_has_the_tables() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "\n".join(forecast.table()) in text
    assert "\n".join(forecast.first_token_table()) in text
