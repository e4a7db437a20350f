"""Counting answers that stayed the same."""

from __future__ import annotations

import argparse

import pytest

from bench.precisions import compare, show
from divprune_edge.runtime.lab.evaluation.dataset import load_dataset


def test_same_and_right_are_counted_against_fp32(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {
        "fp32": {"none": [("red", True), ("two", False), ("left", True), ("7", True)]},
        "int4": {"none": [("red", True), ("two", False), ("right", False), ("7", True)]},
    }
    first, second = compare(answers)
    assert (first["same"], first["right"]) == (1, 0.75)
    assert (second["same"], second["right"], second["questions"]) == (0.75, 0.5, 4)
    assert second["same_interval"][0] < 0.75 < second["same_interval"][1]
    show([first, second], load_dataset("demo", 1), argparse.Namespace(block_size=32, dialect="portable"))
    assert "| int4 | none | 75.0% [" in capsys.readouterr().out
