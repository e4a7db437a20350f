"""Differences between methods on the same questions."""

from __future__ import annotations

import pytest

from divprune_edge.runtime.lab.evaluation.dataset import Dataset, ImageQuestions, LabelledQuestion
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.pairs import compare_pairs, pairs_csv
from divprune_edge.runtime.lab.evaluation.results import Record

NONE, A, B, OTHER = (
    EvaluatedMethod("none", 9, None),
    EvaluatedMethod("divprune", 4, None),
    EvaluatedMethod("random", 4, None),
    EvaluatedMethod("divprune", 2, None),
)
QUESTIONS = (LabelledQuestion("What?", ("red",), "color"), LabelledQuestion("Where?", ("left",), "where"))
DATA = Dataset("set", tuple(ImageQuestions(f"{i:02}", lambda: "", QUESTIONS) for i in range(40)))


def records(method: EvaluatedMethod, right: list[bool], asked: str = DATA.images[0].digest) -> list[Record]:
    """One record per image: the first question is as ``right`` says, the second is wrong."""
    return [
        Record(f"{i:02}", asked, method.id, ["", ""], [hit, False], [1, 1], [1, 1], {}, 0, 0)
        for i, hit in enumerate(right)
    ]


def test_every_pair_of_a_budget_and_no_pruning_against_all() -> None:
    methods = [NONE, A, B, OTHER]
    found = compare_pairs([r for m in methods for r in records(m, [True] * 40)], methods, DATA)
    assert [(p.first, p.second) for p in found] == [
        ("none", "divprune-4"),
        ("none", "random-4"),
        ("none", "divprune-2"),
        ("divprune-4", "random-4"),
    ]
    assert {(p.difference, p.low, p.high) for p in found} == {(0, 0, 0)}


def test_images_are_paired() -> None:
    """Both are right on half of the images; where it is the same half, nothing is left to chance."""
    half = [i % 2 == 0 for i in range(40)]
    better = [hit or i == 1 for i, hit in enumerate(half)]
    (same,) = compare_pairs(records(A, better) + records(B, half), [A, B], DATA)
    assert same.difference == pytest.approx(1 / 80)
    assert 0 <= same.low <= same.difference <= same.high <= 0.05
    (opposite,) = compare_pairs(records(A, half) + records(B, [not hit for hit in half]), [A, B], DATA)
    assert opposite.difference == 0
    assert -0.25 < opposite.low < -0.1 < 0.1 < opposite.high < 0.25


def test_only_shared_images_of_this_set_count() -> None:
    found = compare_pairs(
        records(A, [True] * 40) + records(B, [False] * 10) + records(B, [True] * 40, "other words"),
        [A, B, OTHER],
        DATA,
    )
    assert [(p.difference, p.low, p.high) for p in found] == [(0.5, 0.5, 0.5)]
    assert pairs_csv(found) == "first,second,points,low,high\ndivprune-4,random-4,50.000,50.000,50.000\n"
