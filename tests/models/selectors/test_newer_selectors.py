"""References of the newer methods: small cases worked by hand, and what the merging ones put into what they keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from raising import refused
from selectors_cases import make_signals, make_tokens

from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.selectors.agilepruner import agilepruner_picks
from divprune_edge.models.selectors.aim_merge import aim_merge, aim_picks, rounds
from divprune_edge.models.selectors.apet import apet_picks, basis_count
from divprune_edge.models.selectors.fopru import row_picks
from divprune_edge.models.selectors.id_selection import id_selection_picks
from divprune_edge.models.selectors.merging import join_nearest, nearest
from divprune_edge.models.selectors.prumerge import prumerge_merge, prumerge_picks
from divprune_edge.models.selectors.quota import novelty, quota_picks
from divprune_edge.models.selectors.recoverable import recoverable_merge, recoverable_picks
from divprune_edge.models.selectors.scope import scope_picks
from divprune_edge.models.selectors.spread import places, spread_distances, spread_picks


def f32(*values: Any) -> Any:
    return np.array(values, dtype=np.float32)


def all_valid(n: int) -> Any:
    return np.ones(n, bool)


def at(*degrees: float) -> Any:
    """Directions of length 1."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_scope_weighs_what_is_newly_covered() -> None:
    """Cosines of 0, 60, 90, 180 degrees; at first nothing is covered."""
    tokens = at(0, 60, 90, 180)
    # Gains 1.5, 2.366, 1.866, 1; times attention .9, .946, .373, .3.
    attention = f32(0.6, 0.4, 0.2, 0.3)
    # 60 covers .5, 1, .866, 0: 0 gains .5, 90 gains .134, 180 gains 1; times attention .3, .027, .3: the first.
    assert scope_picks(tokens, all_valid(4), 2, cls_attention=attention).tolist() == [1, 0]
    attention = f32(0.5, 0.4, 0.2, 0.3)
    assert scope_picks(tokens, all_valid(4), 3, cls_attention=attention).tolist() == [1, 3, 0]
    valid = np.array([True, False, True, True])
    # Without 60: 0 gains 1, 90 gains 1, 180 gains 1.
    assert scope_picks(tokens, valid, 3, cls_attention=attention).tolist() == [0, 3, 2]


def test_scope_is_facility_location_under_equal_attention() -> None:
    """Each pick is the one after which the summed best cosines are largest."""
    random = np.random.default_rng(4)
    tokens = make_tokens("random", 30, random)
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    cosines = unit.astype(np.float64) @ unit.T.astype(np.float64)
    picks = scope_picks(tokens, all_valid(30), 8, cls_attention=np.ones(30, np.float32)).tolist()
    for t in range(8):
        covers = [np.maximum(cosines[[*picks[:t], i]].max(axis=0), 0).sum() for i in range(30)]
        assert covers[picks[t]] == pytest.approx(max(covers))


def test_id_selection_lowers_what_resembles_a_pick() -> None:
    tokens = at(0, 10, 90, 180)
    attention = f32(0.5, 0.4, 0.001, 0.0001)
    # 10 degrees to the first: exp(-20 * .985) of .4 is 1e-9; 90 and 180 keep what they have. Then 10 loses another
    # 20 * .174 to 90, and nothing to 180.
    assert id_selection_picks(tokens, all_valid(4), 4, cls_attention=attention).tolist() == [0, 2, 3, 1]


def test_agilepruner_shuts_out_what_is_close_by_a_growing_bound() -> None:
    """10 degrees apart are .0152, 12 degrees .0219; bounds are .01, .02, .03."""
    tokens = at(0, 10, 20, 90, 102)
    attention = f32(0.5, 0.4, 0.3, 0.2, 0.1)
    # 0 shuts out nothing, 10 shuts out 20, 90 shuts out 102; then come those that are shut out, by attention.
    picks = agilepruner_picks(tokens, all_valid(5), 5, cls_attention=attention)
    assert picks.tolist() == [0, 1, 3, 2, 4]


def test_apet_keeps_what_its_basis_does_not_explain() -> None:
    """K = 4: a basis of 2, the longest token and the one farthest from it and from the origin."""
    assert [basis_count(k) for k in (1, 2, 5, 58)] == [1, 1, 2, 10]
    tokens = f32([9, 0, 0], [0, 8, 0], [5, 5, 0], [4, 0, 3], [0, 0, 1], [0, 1, 2])
    # Farthest: 0 (length 9), then 1: min(8, sqrt(145)) = 8. What is left of the others is their third coordinate.
    assert apet_picks(tokens, all_valid(6), 4).tolist() == [0, 1, 3, 5]
    kept = join_nearest(tokens, all_valid(6), np.array([0, 1, 3, 5]))
    # Token 2 joins 0 or 1, as like it to either: 0, the first. Token 4 joins 5 (cosine .894).
    assert np.allclose(kept, [[7, 2.5, 0], [0, 8, 0], [4, 0, 3], [0, 0.5, 1.5]])


@pytest.mark.parametrize("seed", range(5))
def test_apet_errors_are_those_of_least_squares(seed: int) -> None:
    tokens = make_tokens("clustered", 60, np.random.default_rng(seed), width=24)
    picks = apet_picks(tokens, all_valid(60), 24)
    basis = tokens[picks[:10]].astype(np.float64)
    weights, *_ = np.linalg.lstsq(basis.T, tokens.T.astype(np.float64), rcond=None)
    errors = np.linalg.norm(tokens - (basis.T @ weights).T, axis=1)
    others = np.setdiff1d(np.arange(60), picks[:10])
    assert set(picks[10:]) == set(others[np.argsort(-errors[others])[:14]])


def test_fopru_keeps_whole_rows() -> None:
    """3 x 3, sums .3, .6, .5: of five the second row and the two best of the third."""
    received = f32(0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.2, 0.0, 0.3)
    kept = row_picks(np.zeros((9, 2)), all_valid(9), 5, attention_received=received)
    assert kept.tolist() == [4, 3, 5, 8, 6]
    with refused("selector-needs-square-grid", "fopru-row", 26):
        SELECTORS["fopru-row"].check_grid(26)


def test_nearest_takes_the_first_of_equals() -> None:
    similar = f32([1, 3, 3, 3, 0], [5, 4, 3, 2, 1])
    assert nearest(similar, 2).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]


def test_what_is_dropped_joins_what_it_resembles() -> None:
    tokens = f32([2, 0], [0, 4], [4, 0], [0, 2], [6, 0])
    # 0 and 2 join 4: (2 + 4 + 6) / 3; 3 joins 1: (4 + 2) / 2.
    assert join_nearest(tokens, all_valid(5), np.array([1, 4])).tolist() == [[0, 3], [4, 0]]
    valid = np.array([True, True, False, True, True])
    assert join_nearest(tokens, valid, np.array([1, 4])).tolist() == [[0, 3], [4, 0]]


def test_prumerge_adds_neighbours_and_one_token_for_the_rest() -> None:
    """Four tokens, fewer than 32 neighbours: each kept one gets all others."""
    tokens, keys = f32([1], [10], [100], [1000]), f32([1, 0], [0, 1], [1, 1], [1, 2])
    signals = {"cls_attention": f32(0.4, 0.1, 0.3, 0.2), "keys": keys}
    picks = prumerge_picks(tokens, all_valid(4), 3, **signals)
    assert picks.tolist() == [-1, 0, 2]
    kept = prumerge_merge(tokens, all_valid(4), picks, **signals)
    # Dropped: .1 * 10 + .2 * 1000. Kept: 1 + 1 + 30 + 200, and 100 + .4 + 1 + 200.
    assert kept[:, 0] == pytest.approx([201, 232, 301.4])


def test_prumerge_takes_the_32_most_similar() -> None:
    """40 keys along ever wider angles from the first."""
    angles = np.radians(np.arange(40))
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    attention = np.full(40, 0.5, np.float32)
    attention[0] = 0.75
    tokens = (2.0 ** -np.arange(40, dtype=np.float32))[:, None]
    kept = prumerge_merge(tokens, all_valid(40), np.array([-1, 0]), cls_attention=attention, keys=keys)
    assert kept[1, 0] == pytest.approx(1 + 0.5 * (1 - 2.0**-32), abs=1e-7)
    assert kept[0, 0] == pytest.approx(0.5 * (1 - 2.0**-39), abs=1e-7)


def test_recoverable_gathers_around_lonely_tokens() -> None:
    """K = 6: one for the rest, one centre, four attended."""
    n = 24
    attention = np.full(n, 0.01, np.float32)
    attention[:4] = 0.2
    keys = np.tile(f32([1, 0]), (n, 1))
    keys[7] = (0, 1)
    tokens = np.arange(n, dtype=np.float32)[:, None]
    signals = {"cls_attention": attention, "keys": keys}
    picks = recoverable_picks(tokens, all_valid(n), 6, **signals)
    assert picks.tolist() == [-1, 0, 1, 2, 3, 7]
    kept = recoverable_merge(tokens, all_valid(n), picks, **signals)
    dropped = sum(i for i in range(4, n) if i != 7) / 100
    # Fewer than 32 are dropped: the centre gets all of them, and the attended stay as they are.
    assert kept[:, 0] == pytest.approx([dropped, 0, 1, 2, 3, 7 + dropped])


def test_aim_joins_pairs_of_neighbouring_places() -> None:
    assert [rounds(576, k) for k in (576, 288, 144, 72, 58, 1)] == [0, 1, 2, 3, 4, 10]
    tokens = at(0, 1, 90, 2, 180, 181)
    # Even places 0, 90, 180; odd 1, 2, 181. To four: 0 joins 1 and 180 joins 181 (both 1 degree), 90 stays.
    assert aim_picks(tokens, all_valid(6), 4).tolist() == [1, 2, 3, 5]
    kept = aim_merge(tokens, all_valid(6), np.array([1, 2, 3, 5]))
    assert np.allclose(kept, [(tokens[0] + tokens[1]) / 2, tokens[2], tokens[3], (tokens[4] + tokens[5]) / 2])
    # Several join one: all even places find place 1.
    tokens = f32([3, 0], [1, 0], [5, 0], [0, 1])
    assert aim_picks(tokens, all_valid(4), 2).tolist() == [1, 3]
    assert aim_merge(tokens, all_valid(4), np.array([1, 3])).tolist() == [[3, 0], [0, 1]]


def test_aim_goes_by_places_among_the_valid() -> None:
    tokens = at(0, 50, 1, 90)
    valid = np.array([True, False, True, True])
    # Places 0, 1, 2 of what is valid: 0 and 90 degrees look for 1 degree.
    assert aim_picks(tokens, valid, 2).tolist() == [2, 3]


def test_quota_gives_rows_to_the_runs_that_differ() -> None:
    """16 runs of two; those of the last four differ from all others."""
    tokens = np.zeros((32, 8), np.float32)
    tokens[:, 0] = 1
    for run in range(12, 16):
        tokens[2 * run : 2 * run + 2] = np.eye(8, dtype=np.float32)[run - 10]
    new = novelty(tokens, all_valid(32))
    assert new.tolist() == [0] * 24 + [1] * 8
    # Shares 2, 2, 2, 2 of eight: both rows of each.
    assert sorted(quota_picks(tokens, all_valid(32), 8).tolist()) == list(range(24, 32))
    # With alike runs everywhere, each gets as many: one of two where K is 16.
    same = np.ones((32, 4), np.float32)
    assert sorted(quota_picks(same, all_valid(32), 16).tolist()) == list(range(0, 32, 2))


def test_quota_spreads_rows_within_a_run() -> None:
    """One run of four in 64 rows that all are alike: K = 32 takes every second row of each."""
    same = np.ones((64, 4), np.float32)
    kept = np.sort(quota_picks(same, all_valid(64), 32))
    assert set(np.diff(kept)) == {2}


@pytest.mark.parametrize("name", ["prumerge", "recoverable", "apet", "aim-merge"])
def test_rows_that_are_not_valid_join_nothing(name: str) -> None:
    selector = SELECTORS[name]
    random = np.random.default_rng(9)
    tokens, signals = make_tokens("clustered", 49, random), make_signals(selector, 49, random)
    valid = all_valid(49)
    valid[30:] = False
    kept = selector.kept(tokens, valid, 9, **signals)
    other = {name: np.where(valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0.5) for name, x in signals.items()}
    tokens[30:] = 7
    assert np.array_equal(selector.kept(tokens, valid, 9, **other), kept)


def test_spread_adds_the_distance_of_places() -> None:
    """4 x 4 places, the diagonal is 1: all tokens alike, so corners come first, then what is farthest from them."""
    assert places(16)[[0, 15]].tolist() == [[0, 0], [pytest.approx(0.5**0.5)] * 2]  # type: ignore[index]
    same = np.ones((16, 4), np.float32)
    assert spread_distances(same)[0, 15] == pytest.approx(1.5)
    assert spread_distances(same)[0, 1] == pytest.approx(1.5 / (3 * 2**0.5))
    assert spread_picks(same, all_valid(16), 5).tolist() == [0, 15, 3, 12, 5]
    # A token in a corner that looks like no other is worth 1 more.
    other = same.copy()
    other[6] = (1, -1, 1, -1)
    assert spread_picks(other, all_valid(16), 4).tolist()[0] == 6


def test_without_a_grid_spread_is_max_min() -> None:
    assert places(15) is None and places(1) is None
    tokens = make_tokens("clustered", 30, np.random.default_rng(2))
    one, two = (SELECTORS[name].picks(tokens, all_valid(30), 9) for name in ("spread", "divprune"))
    assert one.tolist() == two.tolist()
