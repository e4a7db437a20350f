"""Intervals, budgets and selectors of the evaluation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from divprune_edge.models.demo.held_out import held_out  # noqa: E402
from divprune_edge.models.demo.trainer.evaluate import divprune_order, keep, measure, picker, wilson  # noqa: E402
from divprune_edge.models.demo.trainer.network import DemoLlava  # noqa: E402
from divprune_edge.models.demo.trainer.score_tables import tables  # noqa: E402
from divprune_edge.models.selectors.divprune import max_min_select  # noqa: E402


def test_wilson_interval() -> None:
    low, high = wilson(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-3)
    assert high == pytest.approx(0.5962, abs=1e-3)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert wilson(0, 10)[0] == pytest.approx(0.0)


def test_a_budget_is_a_prefix_of_the_order() -> None:
    torch.manual_seed(0)
    model = DemoLlava()
    features = torch.randn(2, 576, 128)
    with torch.inference_mode():
        order = divprune_order(model, features)
        tokens = model.model.multi_modal_projector(features[1]).numpy()
    for budget in (1, 58, 144):
        expected = max_min_select(tokens, np.ones(576, bool), budget)
        assert order[1, :budget].sort().values.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["random", "uniform", "divprune"])
def test_selectors_keep_distinct_tokens(name: str) -> None:
    order = torch.stack([torch.randperm(576) for _ in range(3)])
    for budget in (1, 29, 58, 144, 576):
        picks = picker(name, order)(budget)
        assert picks.shape == (3, budget)
        assert all(len(set(row)) == budget for row in picks.tolist())
    features = torch.arange(576.0)[None, :, None].expand(3, -1, 2)
    kept = keep(features, picker(name, order)(29))
    assert bool((kept.diff(dim=1) > 0).all())


def test_an_untrained_model_is_measured_and_reported() -> None:
    torch.manual_seed(0)
    result = measure(DemoLlava().eval(), held_out(1), grid_pictures=1, grid=(16,))
    text = tables(result)
    assert "| **macro** |" in text
    assert "| divprune | 58 |" in text
