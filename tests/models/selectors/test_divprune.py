"""DivPrune's reference against its definition, and properties that any implementation must have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raising import refused

from divprune_edge.models.selectors import SELECTORS, find_selector
from divprune_edge.models.selectors.divprune import (
    cosine_distances,
    max_min_picks,
    max_min_select,
    replay_regret,
)


def brute_force(distances: Any, valid: Any, keep: int) -> list[int]:
    """Max-min diversity word for word, one pair at a time."""
    rows = [i for i in range(len(valid)) if valid[i]]

    def nearest(i: int, others: list[int]) -> float:
        return min((float(distances[i][j]) for j in others if j != i), default=float("inf"))

    chosen: list[int] = []
    while len(chosen) < keep:
        best, best_value = -1, -float("inf")
        for i in rows:
            if i in chosen:
                continue
            value = nearest(i, chosen or rows)
            if value > best_value:  # the first of equals stays
                best, best_value = i, value
        chosen.append(best)
    return chosen


def some_tokens(seed: int, n: int, width: int = 5) -> Any:
    """Small integers: ties, duplicates and zero rows come by themselves."""
    random = np.random.default_rng(seed)
    if seed % 3 == 0:
        return random.normal(size=(n, width)).astype(np.float32)
    return random.integers(-1, 2, (n, width)).astype(np.float32)


def some_valid(seed: int, n: int, keep: int) -> Any:
    random = np.random.default_rng(seed + 1)
    valid = np.ones(n, bool)
    valid[random.permutation(n)[: random.integers(0, n - keep + 1)]] = False
    return valid


sizes = st.integers(2, 18).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 10**6)


@given(sizes, seeds)
@settings(max_examples=300, deadline=None)
def test_the_reference_is_the_definition(size: tuple[int, int], seed: int) -> None:
    n, keep = size
    distances, valid = cosine_distances(some_tokens(seed, n)), some_valid(seed, n, keep)
    distances = np.minimum(distances, distances.T)  # dividing by two norms in turn differs in the last bit
    assert max_min_picks(distances, valid, keep).tolist() == brute_force(distances, valid, keep)


@given(sizes, seeds)
@settings(max_examples=100, deadline=None)
def test_k_distinct_valid_rows_ascending(size: tuple[int, int], seed: int) -> None:
    n, keep = size
    valid = some_valid(seed, n, keep)
    chosen = max_min_select(some_tokens(seed, n), valid, keep)
    assert chosen.dtype == np.int64
    assert chosen.shape == (keep,)
    assert (np.diff(chosen) > 0).all()
    assert valid[chosen].all()


@given(sizes, seeds)
@settings(max_examples=100, deadline=None)
def test_a_larger_budget_adds_to_a_smaller_one(size: tuple[int, int], seed: int) -> None:
    n, keep = size
    distances, valid = cosine_distances(some_tokens(seed, n)), some_valid(seed, n, keep)
    picks = max_min_picks(distances, valid, keep)
    for smaller in range(1, keep):
        assert max_min_picks(distances, valid, smaller).tolist() == picks[:smaller].tolist()


@given(sizes, seeds)
@settings(max_examples=100, deadline=None)
def test_reordered_rows_give_the_same_rows(size: tuple[int, int], seed: int) -> None:
    """Without ties the order of the tokens does not matter."""
    n, keep = size
    random = np.random.default_rng(seed)
    upper = np.triu(random.permutation(n * n).reshape(n, n).astype(np.float32) / (n * n), 1)
    distances, valid = upper + upper.T, some_valid(seed, n, keep)
    # The two tokens of the closest pair share their nearest distance: only the later picks are free of ties.
    order = random.permutation(n)
    first = max_min_picks(distances, valid, keep)
    second = order[max_min_picks(distances[np.ix_(order, order)], valid[order], keep)]
    if first[0] == second[0]:
        assert first.tolist() == second.tolist()
    else:
        others = valid[None, :] & ~np.eye(n, dtype=bool)
        nearest = np.where(others, distances, 4.0).min(axis=1)
        assert nearest[first[0]] == nearest[second[0]]


@given(sizes, seeds, st.sampled_from([0.25, 2.0, 1024.0]))
@settings(max_examples=50, deadline=None)
def test_length_does_not_count(size: tuple[int, int], seed: int, factor: float) -> None:
    """Powers of two, so that not even rounding changes."""
    n, keep = size
    tokens, valid = some_tokens(seed, n), some_valid(seed, n, keep)
    assert np.array_equal(
        max_min_select(tokens * np.float32(factor), valid, keep), max_min_select(tokens, valid, keep)
    )


@given(sizes, seeds)
@settings(max_examples=100, deadline=None)
def test_the_own_set_has_no_regret(size: tuple[int, int], seed: int) -> None:
    n, keep = size
    distances, valid = cosine_distances(some_tokens(seed, n)), some_valid(seed, n, keep)
    assert replay_regret(distances, valid, np.sort(max_min_picks(distances, valid, keep))) == 0


@pytest.mark.parametrize("seed", range(20))
def test_random_sets_have_regret(seed: int) -> None:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(20, 32))
    tokens = (centres[random.integers(0, 20, 200)] + random.normal(size=(200, 32)) * 0.2).astype(np.float32)
    distances, valid = cosine_distances(tokens), np.ones(200, bool)
    for keep in (5, 20, 40):
        assert replay_regret(distances, valid, np.sort(random.permutation(200)[:keep])) > 1e-2
        assert replay_regret(distances, valid, np.arange(keep)) > 1e-2


def test_one_wrong_pick_has_regret() -> None:
    tokens = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    distances, valid = cosine_distances(tokens), np.ones(60, bool)
    chosen = max_min_select(tokens, valid, 12)
    others = np.setdiff1d(np.arange(60), chosen)
    for place in range(12):
        wrong = np.sort(np.append(np.delete(chosen, place), others[place]))
        assert replay_regret(distances, valid, wrong) > 1e-4


@pytest.mark.parametrize("seed", range(10))
def test_either_of_two_loneliest_tokens_may_come_first(seed: int) -> None:
    """They are each other's nearest, so rounding decides which comes first."""
    random = np.random.default_rng(seed)
    tokens = np.concatenate([np.full((40, 1), 4), np.zeros((40, 1)), random.normal(size=(40, 6))], axis=1)
    tokens[[11, 30]] = 0
    tokens[11, 1], tokens[30, :2] = 1, (-0.9, 0.5)  # an angle of 61 degrees, and more to the rest
    tokens = tokens.astype(np.float32)
    distances, valid = cosine_distances(tokens), np.ones(40, bool)
    nearest = np.where(np.eye(40, dtype=bool), 9, distances).min(axis=1)
    assert set(np.argsort(nearest)[-2:]) == {11, 30}
    for first, second in ((11, 30), (30, 11)):
        rounded = distances.copy()
        rounded[first, second] = rounded[second, first] = nearest.max()
        rounded[first, second] += np.float32(1e-7)
        chosen = np.sort(max_min_picks(rounded, valid, 8))
        assert max_min_picks(rounded, valid, 8)[0] == first
        assert replay_regret(distances, valid, chosen) <= 1e-6
        wrong = np.setdiff1d(np.append(chosen, np.setdiff1d(np.arange(40), chosen)[0]), chosen[3:4])
        assert replay_regret(distances, valid, wrong) > 1e-4


def test_identical_tokens_are_taken_from_the_front() -> None:
    tokens, valid = np.ones((8, 4), np.float32), np.ones(8, bool)
    assert max_min_select(tokens, valid, 3).tolist() == [0, 1, 2]
    valid[0] = False
    assert max_min_select(tokens, valid, 3).tolist() == [1, 2, 3]


def test_a_zero_token_is_at_distance_one_from_all() -> None:
    tokens = np.array([[1, 0], [0, 0], [0, 2], [0, 0]], np.float32)
    distances = cosine_distances(tokens)
    assert np.isfinite(distances).all()
    assert (distances[1] == 1).all()
    assert distances.dtype == np.float32


def test_half_precision_tokens_are_compared_in_float32() -> None:
    tokens = np.random.default_rng(3).normal(size=(40, 64)).astype(np.float16)
    assert np.array_equal(cosine_distances(tokens), cosine_distances(tokens.astype(np.float32)))
    large = np.full((3, 64), 60000, np.float16)  # their squares overflow float16
    assert np.abs(cosine_distances(large)).max() < 1e-5


@pytest.mark.parametrize("keep", [0, 4, 5])
def test_too_few_valid_rows(keep: int) -> None:
    valid = np.array([True, False, True, True])
    with refused("keep-exceeds-rows", keep, 3, 4):
        max_min_select(np.eye(4, dtype=np.float32), valid, keep)


def test_selectors_are_found_by_name() -> None:
    assert find_selector("divprune") is SELECTORS["divprune"]
    with refused("selector-unknown", "'divprun'", "'divprune'"):
        find_selector("divprun")
    with refused("selector-unknown", "xyz", "divprune"):
        find_selector("xyz")
