"""The start's benchmark: every command runs in every place as often as the others."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT

from bench import startup


def test_each_command_runs_in_each_place(demo_bundle: Path) -> None:
    found = startup.measure({"here": (ROOT, demo_bundle), "there": (ROOT, demo_bundle)}, 1)
    assert list(found["here"]) == list(found["there"]) == [*startup.commands(demo_bundle)]
    taken = {name: runs[0]["processor_seconds"] for name, runs in found["here"].items()}
    assert len(taken) == 7
    assert all(taken["bare Python"] < seconds for name, seconds in taken.items() if name != "bare Python")


def test_pairs_are_compared() -> None:
    here, there = ([{"processor_seconds": seconds} for seconds in row] for row in ((1, 2, 3), (2, 2, 2)))
    assert startup.ratios(here, there) == "1.00 [0.50, 1.50]"
