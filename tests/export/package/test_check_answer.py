"""The comparison that install.sh makes on the board."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / "export/package/files/check_answer.py"
EXPECTED = {"answer": "a purple disc, I think", "token_ids": [5, 6, 7, 8, 9, 2], "required": 4, "source": "x"}


def compare(folder: Path, given: object, **changes: object) -> tuple[int, str]:
    (folder / "expected.json").write_text(json.dumps(EXPECTED | changes, indent=2))
    (folder / "answer.json").write_text(given if isinstance(given, str) else json.dumps(given) + "\n")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "expected.json", "answer.json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    output = result.stderr if result.returncode else result.stdout
    assert output.count("\n") == 1
    return result.returncode, output


@pytest.mark.parametrize(
    ("ids", "code", "said"),
    [
        ([5, 6, 7, 8, 9, 2], 0, "as recorded."),
        ([5, 6, 7, 8, 1, 2], 0, "4 leading ids as recorded"),
        ([5, 6, 7, 8], 0, "4 leading ids as recorded"),
        ([5, 6, 7, 1, 9, 2], 1, "3 leading ids agree, expected 4"),
        ([5, 6, 7], 1, "3 leading ids agree"),
        ([1], 1, "0 leading ids agree"),
        ([], 1, "answered with nothing"),
    ],
)
def test_leading_ids_decide(tmp_path: Path, ids: list[int], code: int, said: str) -> None:
    found, output = compare(tmp_path, {"answer": "…", "token_ids": ids})
    assert found == code
    assert said in output


def test_a_short_recorded_answer_must_agree_whole(tmp_path: Path) -> None:
    assert compare(tmp_path, {"answer": "", "token_ids": [5, 2]}, token_ids=[5, 2])[0] == 0
    assert compare(tmp_path, {"answer": "", "token_ids": [5, 3]}, token_ids=[5, 2])[0] == 1


def test_nothing_recorded(tmp_path: Path) -> None:
    code, output = compare(
        tmp_path, {"answer": "red", "token_ids": [3]}, answer=None, source="not recorded: why"
    )
    assert code == 0
    assert "nothing to compare with (not recorded: why)" in output


def test_what_it_took(tmp_path: Path) -> None:
    (tmp_path / "expected.json").write_text(json.dumps(EXPECTED))
    answer = {
        "answer": "x",
        "token_ids": EXPECTED["token_ids"],
        "timings_ms": {"vision": 12.4, "total": 40.0},
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    command = [sys.executable, str(SCRIPT), "expected.json", "answer.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1].startswith("It took, in ms: vision 12, total 40 (")


@pytest.mark.parametrize("answer", ["", "not json", "[]", '{"answer": "x"}'])
def test_an_answer_that_is_none(tmp_path: Path, answer: str) -> None:
    code, output = compare(tmp_path, answer)
    assert code == 1
    assert "does not hold an answer" in output


def test_lines_before_the_answer_do_no_harm(tmp_path: Path) -> None:
    assert compare(tmp_path, 'a warning\n{"answer": "x", "token_ids": [5, 6, 7, 8]}\n')[0] == 0
