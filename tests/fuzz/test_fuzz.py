"""A few inputs of every class end in an answer or a sentence; ``make fuzz`` runs as many as one likes."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz import run, table
from fuzz.classes import CLASSES
from yardstick import LONG, unit

from divprune_edge.errors import UserError


@pytest.mark.slow
def test_nothing_from_outside_ends_in_a_traceback() -> None:
    summary = run.fuzz(None, cases=60, seed=7, jobs=1, limit=LONG * unit())
    for name, found in summary["classes"].items():
        assert found["cases"] == 60, name
        assert not found["faults"], (name, found["examples"])
        assert found["refused"] < 60 or name == "arguments", name
    assert sum(found["refused"] for found in summary["classes"].values()) > 100


def test_a_fault_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed gives the same case again; a traceback, much time and much memory are told, a sentence is not."""
    seen: list[float] = []

    def made(folder: Path, bundle: Path) -> Any:
        def case(random: Random) -> None:
            seen.append(random.random())
            if len(seen) == 1:
                raise UserError("A sentence.", code="a-code")
            if len(seen) == 2:
                raise KeyError("name")
            if len(seen) == 3:
                sum(range(3_000_000))
            if len(seen) == 4:
                # More than this process, which other tests share, has ever had.
                bytearray(b"x") * ((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) + (300 << 20))

        return case

    (tmp_path / "demo").mkdir()
    (tmp_path / "counter").write_text("0 0")
    monkeypatch.setitem(CLASSES, "made", made)
    monkeypatch.setattr(logging, "disable", lambda level: None)  # other tests follow in this process
    monkeypatch.setattr(run, "BYTES", 128 << 20)
    run.work("made", tmp_path, range(4), seed=0, limit=2 * unit())
    faults = [json.loads(line) for line in (tmp_path / "faults").read_text().splitlines()]
    assert {fault["case"] for fault in faults} >= {1, 2, 3}
    assert 0 not in {fault["case"] for fault in faults}
    assert "KeyError" in faults[0]["fault"]
    assert any("of memory" in fault["fault"] for fault in faults)
    assert (tmp_path / "counter").read_text().split() == ["3", "1"]
    assert seen[2] == Random("made:0:2").random()


def test_the_table_of_the_page_is_that_of_the_last_run() -> None:
    page, summary = (path.read_text(encoding="utf-8") for path in (table.PAGE, table.SUMMARY))
    assert table.rewritten(page, summary) == page, "run tests/fuzz/table.py"
    assert set(table.INPUTS) == set(CLASSES) == set(json.loads(summary)["classes"])
