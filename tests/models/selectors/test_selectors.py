"""Every reference: small cases worked by hand, properties that always hold, and no two methods alike."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import refused
from selectors_cases import KINDS, make_signals, make_tokens, some_valid

from divprune_edge.models.selectors import SELECTORS, find_selector, regret_of
from divprune_edge.models.selectors.cdpruner import cdpruner_picks, relevance
from divprune_edge.models.selectors.dart import dart_picks, shares
from divprune_edge.models.selectors.hiprune import anchor_count, hiprune_picks, neighbours
from divprune_edge.models.selectors.holov import crop_members, crop_shares
from divprune_edge.models.selectors.random import random_scores
from divprune_edge.models.selectors.todre import todre_picks
from divprune_edge.models.selectors.uniform import uniform_picks
from divprune_edge.models.selectors.visionzip import contextual_count, visionzip_merge, visionzip_picks


def f32(*values: Any) -> Any:
    return np.array(values, dtype=np.float32)


def all_valid(n: int) -> Any:
    return np.ones(n, bool)


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", SELECTORS)
def test_always_k_distinct_valid_tokens(name: str, data: Any) -> None:
    selector = SELECTORS[name]
    n = data.draw(st.sampled_from([1, 4, 9, 16, 25, 49]))
    keep = data.draw(st.integers(1, n))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tokens = make_tokens(data.draw(st.sampled_from(KINDS)), n, random)
    valid = some_valid(n, keep, random) if data.draw(st.booleans()) else all_valid(n)
    signals = make_signals(selector, n, random, flat=data.draw(st.booleans()))
    indices = selector.reference(tokens, valid, keep, **signals)
    kept = selector.kept(tokens, valid, keep, **signals)
    assert indices.dtype == np.int64
    assert indices.shape == (keep,)
    assert kept.shape == (keep, tokens.shape[1])
    assert kept.dtype == tokens.dtype
    assert len(set(indices.tolist())) == keep
    assert valid[indices[indices >= 0]].all()
    if selector.merge is None:
        assert (np.diff(indices) > 0).all()
        assert np.array_equal(kept, tokens[indices])
    assert np.array_equal(indices, selector.reference(tokens, valid, keep, **signals))
    # Rows that are not valid might hold anything.
    other = np.where(valid[:, None], tokens, np.float32(7))
    assert np.array_equal(indices, selector.reference(other, valid, keep, **signals))


@pytest.mark.parametrize("name", [n for n, s in SELECTORS.items() if s.values is not None])
def test_regret_is_zero_for_the_own_set_and_large_for_another(name: str) -> None:
    selector = SELECTORS[name]
    random = np.random.default_rng(8)
    tokens, signals = make_tokens("random", 64, random), make_signals(selector, 64, random)
    chosen = selector.reference(tokens, all_valid(64), 12, **signals)
    assert regret_of(selector, tokens, all_valid(64), chosen, **signals) <= 1e-4
    rest = np.setdiff1d(np.arange(64), chosen)[:12]
    assert regret_of(selector, tokens, all_valid(64), rest, **signals) > 1e-3


@pytest.mark.parametrize("name", SELECTORS)
def test_too_few_valid_rows_are_refused(name: str) -> None:
    selector = SELECTORS[name]
    random = np.random.default_rng(0)
    valid = all_valid(9)
    valid[:6] = False
    with refused("keep-exceeds-rows", 4, 3, 9):
        selector.reference(make_tokens("random", 9, random), valid, 4, **make_signals(selector, 9, random))


def test_no_two_methods_keep_the_same() -> None:
    random = np.random.default_rng(1)
    tokens = make_tokens("clustered", 144, random)
    signals: dict[str, Any] = {}
    for selector in SELECTORS.values():
        signals |= {k: v for k, v in make_signals(selector, 144, random).items() if k not in signals}
    kept = {
        name: selector.kept(
            tokens, all_valid(144), 36, **{signal: signals[signal] for signal in selector.signals}
        )
        for name, selector in SELECTORS.items()
    }
    for one, two in combinations(kept, 2):
        assert not np.array_equal(kept[one], kept[two]), (one, two)


def test_each_states_its_source_and_its_parameters() -> None:
    for name, selector in SELECTORS.items():
        assert selector.name == name
        assert selector.citation
        assert all(sentence.endswith(".") for sentence in selector.deviations)


def test_unknown_names_get_the_closest_one() -> None:
    with refused("selector-unknown", "holv", "holov", "divprune"):
        find_selector("holv")


# By hand.


def test_random_is_a_fixed_order_and_nested() -> None:
    """SHA-256 of '0:0', '0:1', '0:2', '0:3' begins with …: the order never changes."""
    import hashlib

    first = min(range(576), key=lambda i: hashlib.sha256(f"0:{i}".encode()).hexdigest())
    assert int(random_scores(576).argmax()) == first
    random = SELECTORS["random"]
    tokens = np.zeros((576, 4), np.float32)
    few, many = (set(random.reference(tokens, all_valid(576), k).tolist()) for k in (29, 144))
    assert few < many


def test_uniform_takes_the_middles() -> None:
    tokens = np.zeros((12, 2), np.float32)
    assert uniform_picks(tokens, all_valid(12), 3).tolist() == [2, 6, 10]
    assert uniform_picks(tokens, all_valid(12), 5).tolist() == [1, 3, 6, 8, 10]
    valid = all_valid(12)
    valid[:8] = False  # rows 8…11 are left: their middles are the second and the fourth
    assert uniform_picks(tokens, valid, 2).tolist() == [9, 11]


def test_attention_methods_take_the_largest() -> None:
    tokens, score = np.zeros((5, 2), np.float32), f32(0.1, 0.4, 0.1, 0.3, 0.1)
    for name, signal in (("fastervlm", "cls_attention"), ("vtc-cls", "cls_attention_sum")):
        assert SELECTORS[name].picks(tokens, all_valid(5), 3, **{signal: score}).tolist() == [1, 3, 0]
        valid = np.array([True, False, True, True, True])
        assert SELECTORS[name].picks(tokens, valid, 3, **{signal: score}).tolist() == [3, 0, 2]


def test_todre_adds_the_smallest_sum_of_similarities() -> None:
    """Directions at 0, 10, 120, 245 and 100 degrees, the class token looks at the first."""
    angles = np.radians([0, 10, 120, 245, 100])
    tokens = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 3
    picks = todre_picks(tokens, all_valid(5), 3, cls_attention=f32(0.5, 0.1, 0.1, 0.1, 0.2))
    # Cosines to 0: .985, -.5, -.423, -.174, so 120 is next. Sums over {0, 120}: .985 - .342 = .643 for 10,
    # -.423 - .574 = -.996 for 245, -.174 + .940 = .766 for 100.
    assert picks.tolist() == [0, 2, 3]


def test_hiprune_anchors_neighbours_and_registers() -> None:
    """10 x 10 tokens, K = 30: round(30 * 0.1 / 5) = 1 anchor and its four neighbours."""
    assert [anchor_count(k) for k in (20, 30, 64, 128, 192)] == [0, 1, 1, 3, 4]
    low = np.arange(100, dtype=np.float32) / 10000
    seen = np.full(100, 0.001, np.float32)
    seen[44] = 0.5
    kept = hiprune_picks(
        np.zeros((100, 2)), all_valid(100), 30, attention_object=seen, attention_received=low
    )
    assert kept[:5].tolist() == [34, 43, 44, 45, 54]
    assert sorted(kept[5:].tolist()) == list(range(75, 100))
    # At an edge, neighbours wrap to the next row and are clamped to the image.
    assert neighbours(np.array([0]), 100).tolist() == [0, 1, 0, 10]
    assert neighbours(np.array([19]), 100).tolist() == [18, 20, 9, 29]
    with refused("selector-needs-square-grid", "hiprune", 26):
        SELECTORS["hiprune"].check_grid(26)


def test_visionzip_keeps_class_token_dominant_and_contextual() -> None:
    """K = 6: one contextual token (round(60 / 64)), the class token, four dominant ones."""
    assert [contextual_count(k) for k in (1, 3, 6, 58, 64)] == [0, 0, 1, 9, 10]
    n = 8
    tokens = np.arange(n, dtype=np.float32)[:, None] * f32(1, 10)
    attention = f32(0.1, 0.9, 0.8, 0.0, 0.7, 0.0, 0.6, 0.0)
    keys = np.ones((n, 2), np.float32)
    signals = {"cls_attention": attention, "keys": keys, "cls_token": f32([-5, -50])}
    picks = visionzip_picks(tokens, all_valid(n), 6, **signals)
    assert picks.tolist() == [-1, 1, 2, 4, 6, 0]
    kept = visionzip_merge(tokens, all_valid(n), picks, **signals)
    # 3, 5 and 7 join token 0: 0 + mean(3, 5, 7) = 5.
    assert kept[:, 0].tolist() == [-5, 1, 2, 4, 6, 5]
    assert kept[:, 1].tolist() == [-50, 10, 20, 40, 60, 50]


def test_visionzip_joins_the_most_similar_target() -> None:
    """K = 13: two contextual, the class token, ten dominant of 16; targets are every third of the six left."""
    n = 16
    tokens = np.zeros((n, 1), np.float32)
    tokens[10:] = f32([1], [2], [4], [8], [16], [32])
    attention = np.where(np.arange(n) < 10, 0.1, 0.0).astype(np.float32)
    keys = np.zeros((n, 2), np.float32)
    keys[10:] = f32([1, 0], [0, 2], [3, 1], [0, 5], [1, 9], [2, 0])
    signals = {"cls_attention": attention, "keys": keys, "cls_token": f32([0])}
    picks = visionzip_picks(tokens, all_valid(n), 13, **signals)
    assert picks[-2:].tolist() == [10, 13]
    # 12 and 15 point along 10, 11 and 14 along 13: 1 + (4 + 32) / 2 = 19, 8 + (2 + 16) / 2 = 17.
    kept = visionzip_merge(tokens, all_valid(n), picks, **signals)
    assert kept[-2:, 0].tolist() == [19, 17]


def test_holov_shares_the_budget_among_crops() -> None:
    """Weights .5, .3, .2 of K = 7: floors 3, 2, 1, and the one left over goes to the first."""
    assert crop_shares(f32(5, 3, 2), 7).tolist() == [4, 2, 1]
    assert crop_shares(f32(1, 1, 1, 1), 6).tolist() == [2, 2, 1, 1]
    assert crop_members(576).sum(axis=1).tolist() == [36] * 16
    # Orthogonal tokens have no similarity at all: scores are the attentions, 32 tokens in 16 crops of two.
    attention = np.full(32, 1 / 64, np.float32)
    attention[[0, 31]] = 0.25
    kept = SELECTORS["holov"].reference(
        np.eye(32, dtype=np.float32), all_valid(32), 16, cls_attention=attention
    )
    # Crops 0 and 15 weigh (.25 + .0156) / (2 * .2656 + 14 * .03125) = .274 each: floor(4.4) = 4, more than they
    # have; the others weigh .0323: floor .5 = 0; what is left over, 8, goes one each to crops 0, 15, 1 … 6.
    assert {0, 1, 30, 31} <= set(kept.tolist())
    assert {2, 4, 6, 8, 10, 12} <= set(kept.tolist())


def test_cdpruner_weighs_relevance_and_diversity() -> None:
    """Two equal tokens and an orthogonal one: the second copy adds nothing, however relevant."""
    tokens = f32([1, 0], [1, 0], [0, 1], [1, 1])
    attention = f32(0.4, 0.39, 0.2, 0.1)
    assert relevance(all_valid(4), attention)[[0, 3]] == pytest.approx([1, 0], abs=1e-5)
    # q = 1, .967, .333, 0. Gains q^2 = 1, .934, .111, 0; after token 0: 0, 0, .111, 0. Then nothing is left.
    assert cdpruner_picks(tokens, all_valid(4), 4, cls_attention=attention).tolist() == [0, 2, 1, 3]


def test_cdpruner_gains_are_the_determinants() -> None:
    from divprune_edge.models.selectors.cdpruner import kernel

    random = np.random.default_rng(3)
    tokens, attention = make_tokens("random", 12, random), random.random(12).astype(np.float32)
    matrix = kernel(tokens, all_valid(12), attention).astype(np.float64)
    picks = cdpruner_picks(tokens, all_valid(12), 5, cls_attention=attention).tolist()
    for t in range(5):

        def determinant(row: int, chosen: list[int] = picks[:t]) -> float:
            rows = [*chosen, row]
            return float(np.linalg.det(matrix[np.ix_(rows, rows)]))

        assert picks[t] == max((r for r in range(12) if r not in picks[:t]), key=determinant)


def test_dart_adds_what_resembles_the_pivots_least() -> None:
    assert shares(3) == (0, 0, 0)
    assert shares(10) == (2, 2, 1, 1)
    tokens = f32([9, 0], [0, 8], [-7, 0], [0, -6], [2, 1], [-2, 1], [-1, -2], [1, -2])
    # L1 norms 9, 8, 7, 6 make rows 0 … 3 the pivots. Least like (1, 0): row 5, cosine -.894, against -.447 of row
    # 6. Least like (0, 1) of 4, 6, 7: rows 6 and 7 tie at -.894.
    assert dart_picks(tokens, all_valid(8), 6).tolist() == [0, 1, 2, 3, 5, 6]


def test_composition_picks_among_the_candidates() -> None:
    """K = 2 of four candidates: the two most attended would be alike, max-min takes the ones that are not."""
    tokens = f32([1, 0], [1, 0.1], [0, 1], [1, 0.2], [-1, 0], [-1, -1])
    attention = f32(0.4, 0.3, 0.2, 0.1, 0.0, 0.0)
    both = SELECTORS["fastervlm+divprune"].reference(tokens, all_valid(6), 2, cls_attention=attention)
    # Among 0 … 3, token 2 is farthest from its nearest; the farthest from it is 0. Tokens 4 and 5 never count.
    assert both.tolist() == [0, 2]
    valid = all_valid(6)
    valid[[0, 2]] = False
    both = SELECTORS["fastervlm+divprune"].reference(tokens, valid, 2, cls_attention=attention)
    # All four are candidates now. Token 4 is as far from 5 as 5 from 4; the farthest from it is 1.
    assert both.tolist() == [1, 4]
