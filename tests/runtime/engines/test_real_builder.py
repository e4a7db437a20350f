"""A real TensorRT parses and builds every kind of graph: TensorRT-RTX, which needs no GPU for that (level E2b)."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plugins_emulation import ROOT
from tensorrt_matrix import CHECKPOINTS, Case, all_cases, covering_cases

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="unproven: no TensorRT-RTX (pip install '.[rtx]')",
)


def test_every_pair_of_choices_is_covered() -> None:
    cases = covering_cases()
    assert len(cases) < len(all_cases()) / 4

    def pairs(some: list[Case]) -> set[object]:
        return {pair for case in some for pair in itertools.combinations(case.choices, 2)}

    assert pairs(cases) == pairs(all_cases())


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_every_graph_builds(checkpoint: str, tmp_path: Path) -> None:
    """In a process of its own: one process builds with one TensorRT, and a failure of it may end the process."""
    outcomes = tmp_path / "outcomes.json"
    result = subprocess.run(
        [
            sys.executable,
            "tests/tensorrt_matrix.py",
            "--cover",
            "--checkpoint",
            checkpoint,
            "--json",
            outcomes,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    built = json.loads(outcomes.read_text())
    assert len(built) == sum(case.checkpoint == checkpoint for case in covering_cases())
    assert all(one["size"] > 1000 and not one["words"] for one in built)


def test_what_does_not_build_fails_with_tensorrts_words(tmp_path: Path) -> None:
    """For sm_75 TensorRT-RTX has no product of float32 matrices, so the matrix must say so."""
    script = (
        "import sys, tensorrt_matrix as m; from pathlib import Path\n"
        "(one,) = m.run([m.Case('demo', 'fp16', 'divprune', 75)], Path(sys.argv[1])); print(one.words)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        cwd=ROOT / "tests",
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot build an engine from" in result.stdout, result.stdout + result.stderr
    assert "FP32 GEMM is not supported" in result.stdout
