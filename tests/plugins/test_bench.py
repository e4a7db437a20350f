"""The selector's benchmark runs, on whatever is here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_module

pytest.importorskip("torch")


def test_a_tiny_run(tmp_path: Path) -> None:
    output = tmp_path / "selector.json"
    result = run_module("bench.selector", "--tiny", "--seconds", "0", "--json", str(output))
    assert result.returncode == 0, result.stderr
    results = json.loads(output.read_text())
    (row,) = results["rows"]
    assert row["size"] == "40->8 x 64"
    if results["gpu"] is None:
        assert result.stdout.startswith("No CUDA GPU: the kernel was not measured.")
        assert {"ONNX Runtime", "NumPy reference", "PyTorch loop"} <= set(row["us"])
    else:
        assert {"kernel", "PyTorch loop"} <= set(row["us"])
        assert row["launches"] == 2
