"""FitPrune's recipe: by hand, against an exhaustive search, and its budget."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from raising import refused

from divprune_edge.models.cost import layered_flops, visual_by_layer
from divprune_edge.models.decoder import read_decoder
from divprune_edge.models.schedules.fitting import MeasuredAttention, _entering, _recipe, fit, gathered

DECODER = read_decoder(
    {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
    }
)


def operations(held: Any) -> int:
    return layered_flops(DECODER, held, 0)


def f32(rows: Any) -> Any:
    return np.array(rows, np.float32)


def some_attention(seed: int, m: int = 64, layers: int = 8) -> MeasuredAttention:
    """The deeper a layer, the fewer tokens have most of its attention."""
    random = np.random.default_rng(seed)
    depth = np.arange(layers)[:, None]
    return MeasuredAttention(
        f32(random.exponential(size=(layers, m)) ** (1 + depth / 2)),
        f32(random.exponential(size=(layers, m)) ** (1 + depth)),
    )


def test_only_what_both_can_miss_leaves() -> None:
    """Ten each; a tolerance of 0.3 lets three go: of cross tokens 0, 1 and 2, of self 3, 1 and 2."""
    one = MeasuredAttention(
        itself=f32([[4, 1, 1, 1, 3], [9, 0, 0, 0, 1]]),
        cross=f32([[1, 1, 1, 5, 2], [2, 2, 2, 2, 2]]),
    )
    # Tokens 1 and 2 leave behind layer 0. Behind layer 1 cross has lost 4 of 10 by then: nothing more leaves.
    assert _entering(one, 0.3).tolist() == [1, 0.6]
    assert _entering(one, 0).tolist() == [1, 1]
    assert _recipe([one], 5, 0.3).tolist() == [5, 3]


def test_what_has_left_counts_in_every_later_layer() -> None:
    """Tokens 0 and 1 leave behind layer 0; in layer 1 these had 40 % of the attention, more than may be missed."""
    layers = f32([[1, 1, 4, 4], [2, 2, 1, 5], [2, 2, 1, 5]])
    assert _entering(MeasuredAttention(layers, layers), 0.2).tolist() == [1, 0.5, 0.5]
    assert _entering(MeasuredAttention(layers, layers), 0.5).tolist() == [1, 0.5, 0.25]


def test_gathering_is_the_cheapest_of_all() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        entering = np.sort(random.integers(0, 20, 7))[::-1].astype(np.int64)
        for cuts in (1, 2, 3, 6):
            found = gathered(entering, cuts, lambda n: 3 * n + n * n)
            assert (np.array(found) >= entering).all()
            assert np.count_nonzero(np.diff(found)) <= cuts

            def total(held: Any) -> int:
                return int(sum(3 * n + n * n for n in held))

            least = min(
                total(np.repeat(entering[[0, *places]], np.diff([0, *places, 7])))
                for count in range(cuts + 1)
                for places in combinations(range(1, 7), count)
            )
            assert total(found) == least
    assert gathered(entering, 6, lambda n: n) == entering.tolist(), "a cut for every layer changes nothing"


@pytest.mark.parametrize("target", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("cuts", [1, 3, 7])
def test_the_budget_is_met_and_used(target: float, cuts: int) -> None:
    measured = [some_attention(seed) for seed in range(6)]
    found = fit(measured, 64, target, cuts, operations)
    found.schedule.check(DECODER.layers)
    assert len(found.schedule.cuts) <= cuts
    held = visual_by_layer(found.schedule, DECODER.layers)
    share = operations(held) / operations([64] * 8)
    assert share == pytest.approx(found.share)
    assert target - 0.12 < found.share <= target


def test_less_tolerance_with_more_operations_or_cuts() -> None:
    measured = [some_attention(seed) for seed in range(6)]
    by_target = [fit(measured, 64, target, 3, operations).tolerance for target in (0.8, 0.5, 0.3)]
    by_cuts = [fit(measured, 64, 0.5, cuts, operations).tolerance for cuts in (1, 3, 7)]
    assert sorted(by_target) == by_target
    assert sorted(by_cuts, reverse=True) == by_cuts


def test_prompts_of_different_lengths_count_by_shares() -> None:
    long, short = some_attention(1, 64), some_attention(2, 16)
    found = _recipe([long, short], 64, 0.3)
    mean = (_entering(long, 0.3) + _entering(short, 0.3)) / 2
    np.testing.assert_array_equal(found, np.ceil(mean * 64 - 1e-9))


def test_no_cut_before_the_first_layer_that_may_have_one() -> None:
    measured = [some_attention(seed) for seed in range(3)]
    for first in (1, 2, 4):
        found = fit(measured, 64, 0.7, 3, operations, first)
        assert found.schedule.cuts[0].before >= first
        assert found.share <= 0.7
    with refused("target-flops-unreachable", 0.4, 4):
        fit(measured, 64, 0.4, 3, operations, 4)


def test_a_target_out_of_reach() -> None:
    with refused("target-flops-unreachable", 0.1):
        fit([some_attention(0)], 64, 0.1, 3, operations)
