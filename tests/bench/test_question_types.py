"""``python -m bench.question_types``: shares by type, and differences on the same questions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bench.question_types import by_method, differences, shares
from divprune_edge.runtime.lab.evaluation.dataset import Dataset, ImageQuestions, LabelledQuestion
from divprune_edge.runtime.lab.evaluation.results import RECORDS, Record

QUESTIONS = (LabelledQuestion("?", ("x",), "count"), LabelledQuestion("?", ("x",), "digits"))
DATA = Dataset(
    "set",
    (
        ImageQuestions("a", lambda: np.zeros((1, 1, 3), np.uint8), QUESTIONS),
        ImageQuestions("b", lambda: np.zeros((1, 1, 3), np.uint8), QUESTIONS[:1]),
    ),
)


def record(image: int, method: str, right: list[bool], tokens: int) -> Record:
    asked = DATA.images[image]
    return Record(asked.name, asked.digest, method, [], right, [], [], {}, 0.1, 0.1, tokens, 9)


def test_shares_and_differences_by_type(tmp_path: Path) -> None:
    records = [
        record(0, "none", [True, True], 9),
        record(1, "none", [True], 9),
        record(0, "divprune-4", [True, False], 4),
        record(1, "divprune-4", [False], 2),
    ]
    stale = {**asdict(records[0]), "asked": "other", "right": [False, False]}
    lines = [{"data": "set"}, *map(asdict, records), stale]
    (tmp_path / RECORDS).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = by_method(tmp_path, DATA)
    rows = {(row["method"], row["type"]): row for row in shares(found, ["none", "divprune-4"], DATA)}
    assert [rows["divprune-4", kind]["right"] for kind in ("all", "count", "digits")] == [1, 1, 0]
    assert [rows["divprune-4", kind]["questions"] for kind in ("all", "count", "digits")] == [3, 2, 1]
    assert rows["divprune-4", "count"]["kept"] == 0.5
    assert rows["divprune-4", "all"]["tokens"] == 3
    assert rows["none", "all"]["kept"] == 1
    ahead = {
        kind: difference for kind, difference, *_ in differences(found["none"], found["divprune-4"], DATA)
    }
    assert ahead == {"all": pytest.approx(2 / 3), "count": 0.5, "digits": 1.0}
