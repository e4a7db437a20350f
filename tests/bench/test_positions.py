"""Comparing the two numberings of pruned prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import positions
from bench.positions import compared, show
from divprune_edge.runtime.lab.evaluation.dataset import Dataset, ImageQuestions, LabelledQuestion
from divprune_edge.runtime.lab.evaluation.methods import EvaluatedMethod
from divprune_edge.runtime.lab.evaluation.results import Record

QUESTIONS = (LabelledQuestion("What?", ("red",), "color"), LabelledQuestion("Where?", ("left",), "where"))
DATA = Dataset("set", tuple(ImageQuestions(f"{i:02}", lambda: "", QUESTIONS) for i in range(20)))
METHOD = EvaluatedMethod("divprune", 4, None)


def _records(*right: bool) -> list[Record]:
    return [
        Record(image.name, image.digest, METHOD.id, ["", ""], list(right), [1, 1], [1, 1], {}, 0, 0)
        for image in DATA.images
    ]


def test_each_type_of_question_is_compared_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    records = {"compact": _records(True, False), "original": _records(True, True)}
    rows = compared(records, [METHOD], DATA)
    found = {row["kind"]: (row["questions"], row["compact"], row["original"], row["ahead"]) for row in rows}
    assert found == {"all": (40, 0.5, 1, 0.5), "color": (20, 1, 1, 0), "where": (20, 0, 1, 1)}
    show(rows, ["all", "where"])
    assert "| | ahead by | +50.0 [+50.0, +50.0] | +100.0 [+100.0, +100.0] |" in capsys.readouterr().out


def test_what_is_not_pruned_is_answered_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "positions.json"
    monkeypatch.setattr("sys.argv", ["positions", "--images", "2", "--keep", "29", "--json", str(target)])
    positions.main()
    results = json.loads(target.read_text())
    rows = results["rows"]
    assert [row["method"] for row in rows if row["kind"] == "all"] == ["none", "divprune-29", "uniform-29"]
    assert all(row["compact"] == row["original"] for row in rows if row["method"] == "none")
    assert results["questions"] == next(row["questions"] for row in rows)
