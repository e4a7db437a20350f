"""Greedy, temperature, nucleus, seeds, and ids that must never come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from raising import refused

from divprune_edge.runtime.sampling import Sampler

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def draws(count: int = 4000, **options: object) -> np.ndarray:
    sampler = Sampler(**options)  # type: ignore[arg-type]
    return np.bincount([sampler(LOGITS) for _ in range(count)], minlength=4) / count


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    assert Sampler()(np.array([1, 3, 3, 2], np.float32)) == 1


def test_forbidden_ids_are_never_taken_and_logits_stay() -> None:
    logits = LOGITS.copy()
    assert Sampler(forbidden=[0, 1])(logits) == 2
    assert np.array_equal(logits, LOGITS)
    assert draws(temperature=1.0, seed=1, forbidden=[0])[0] == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_softmax(temperature: float) -> None:
    expected = np.exp(LOGITS / temperature)
    expected /= expected.sum()
    assert np.allclose(draws(temperature=temperature, seed=5), expected, atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.81, 3), (1.0, 4)])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, kept: int) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float64)).astype(np.float32)[[3, 1, 0, 2]]
    sampler = Sampler(temperature=1.0, top_p=top_p, seed=2)
    seen = {sampler(logits) for _ in range(500)}
    assert seen == set([2, 1, 3, 0][:kept])


def test_seed_repeats() -> None:
    first, second = (Sampler(temperature=1.0, seed=9) for _ in range(2))
    assert [first(LOGITS) for _ in range(20)] == [second(LOGITS) for _ in range(20)]


def test_very_low_temperature_is_greedy() -> None:
    assert draws(50, temperature=1e-9, seed=0)[0] == 1


def sorted_whole(logits: np.ndarray, options: dict[str, Any], random: np.random.Generator) -> int:
    """Draw as the definition says, from a sort of the whole vocabulary."""
    scaled = (logits.astype(np.float64) - logits.max()) / options["temperature"]
    order = np.argsort(-scaled, kind="stable")[: options.get("top_k") or None]
    probabilities = np.exp(scaled[order])
    probabilities /= probabilities.sum()
    before = np.cumsum(probabilities) - probabilities
    kept = probabilities[before < options.get("top_p", 1.0)]
    return int(order[random.choice(kept.size, p=kept / kept.sum())])


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 3.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"top_k": 1},
        {"top_k": 40},
        {"top_k": 7, "top_p": 0.8},
        {"top_k": 9000},
    ],
)
@pytest.mark.parametrize("logits", ["random", "peaked", "tied", "two heights", "equal", "few", "one"])
def test_draws_are_those_of_a_sort_of_the_whole_vocabulary(
    logits: str, options: dict[str, Any], temperature: float
) -> None:
    random = np.random.default_rng(3)
    values = random.normal(0, 1, 4000).astype(np.float32)
    row = {
        "random": values,
        "peaked": values * 6,
        "tied": np.round(values * 2),
        "two heights": np.where(np.arange(4000) % 7 == 0, np.float32(2), np.float32(0)),
        "equal": np.zeros(4000, np.float32),
        "few": np.where(np.arange(4000) % 900 == 5, values, np.float32(-np.inf)),
        "one": values[:1],
    }[logits]
    options = {"temperature": temperature, **options}
    sampler, reference = Sampler(seed=11, **options), np.random.default_rng(11)
    assert [sampler(row) for _ in range(60)] == [sorted_whole(row, options, reference) for _ in range(60)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_told(bad: float) -> None:
    """Half precision is to blame only where there is any."""
    for half, said in ((True, "float16 may overflow"), (False, "something is wrong")):
        with refused("logits-not-finite", said):
            Sampler(half=half)(np.array([1, bad, 0], np.float32))


@pytest.mark.parametrize(("top_k", "kept"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4), (0, 4)])
def test_top_k_draws_from_so_many(top_k: int, kept: int) -> None:
    assert np.count_nonzero(draws(temperature=1.0, seed=3, top_k=top_k)) == kept


def test_top_k_and_top_p_together() -> None:
    assert np.count_nonzero(draws(temperature=1.0, seed=3, top_k=3, top_p=0.6)) == 2


def test_repetition_penalty_equals_transformers() -> None:
    torch = pytest.importorskip("torch")
    logits_process = pytest.importorskip("transformers.generation.logits_process")
    random = np.random.default_rng(4)
    for penalty in (0.8, 1.3, 5.0):
        sampler, processor = (
            Sampler(repetition_penalty=penalty),
            logits_process.RepetitionPenaltyLogitsProcessor(penalty),
        )
        ids = [3, 7, 7, 11]
        sampler.see([*ids, 5000])  # a visual token
        for _ in range(20):
            logits = random.normal(size=30).astype(np.float32)
            given = logits.copy()
            wanted = int(processor(torch.tensor([ids]), torch.from_numpy(logits)[None]).argmax())
            assert sampler(logits) == wanted
            assert np.array_equal(logits, given)
            ids.append(wanted)
