"""From a pruning ratio to K: the same digits everywhere."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.models.budget import budget, cache_capacity, check_keep, keep_from_prune


@pytest.mark.parametrize(
    ("ratio", "candidates", "keep"),
    [
        ("0.9", 576, 58),
        ("0.902", 576, 56),
        (0.9, 576, 58),
        ("0", 576, 576),
        ("0.0", 577, 577),
        ("0.5", 5, 2),  # 2.5, half to even
        ("0.5", 7, 4),  # 3.5, half to even
        ("0.75", 10, 2),  # 2.5, where 0.25 is exact
        ("0.65", 10, 4),  # 3.5: in binary (1 - 0.65) * 10 lies below it
        ("0.999", 576, 1),
        ("0.99999", 576, 1),  # never none
        ("9e-1", 576, 58),
        ("0.1", 1, 1),
    ],
)
def test_budget(ratio: str | float, candidates: int, keep: int) -> None:
    assert keep_from_prune(ratio, candidates) == keep


@pytest.mark.parametrize("ratio", ["1", "1.0", "-0.1", "2", "abc", "", "nan", "inf", "-inf", "0,9", "90%"])
def test_what_is_not_a_ratio(ratio: str) -> None:
    with refused("prune-out-of-range") as error:
        keep_from_prune(ratio, 576)
    assert f"--prune {ratio} " in str(error.value)


@pytest.mark.parametrize("keep", [1, 58, 576])
def test_keep_in_range(keep: int) -> None:
    assert check_keep(keep, 576) == keep


@pytest.mark.parametrize("keep", [0, -3, 577])
def test_keep_out_of_range(keep: int) -> None:
    with refused("keep-out-of-range", f"--keep {keep}", 576):
        check_keep(keep, 576)


@pytest.mark.parametrize(
    ("keep", "context", "rows"),
    [(58, 4096, 512), (56, 4096, 512), (64, 4096, 512), (65, 4096, 576), (576, 4096, 1024), (58, 300, 300)],
)
def test_usual_capacity(keep: int, context: int, rows: int) -> None:
    """K + 192 of prompt + 256 of answer, in steps of 64, within the context."""
    assert cache_capacity(keep, context) == rows


def test_capacity_that_was_asked_for() -> None:
    assert cache_capacity(58, 4096, 122) == 122
    assert cache_capacity(58, 4096, 4096) == 4096
    assert cache_capacity(58, 100, 100) == 100, "a context too small for more"


@pytest.mark.parametrize(
    ("asked", "context", "least"), [(121, 4096, 122), (4097, 4096, 122), (99, 100, 100), (-1, 4096, 122)]
)
def test_capacity_out_of_range(asked: int, context: int, least: int) -> None:
    with refused("capacity-out-of-range", f"--capacity {asked}", 58, least, context):
        cache_capacity(58, context, asked)


def test_budget_by_either_option() -> None:
    assert budget(None, None, 576) == 58, "0.9 unless asked otherwise"
    assert budget(None, "0.902", 576) == 56
    assert budget(100, None, 576) == 100
    with refused("keep-out-of-range", "--keep 577"):
        budget(577, None, 576)
