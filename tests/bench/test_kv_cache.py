"""The arithmetic in the documentation, and the measurement at tiny sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from bench import kv_cache
from bench.random_checkpoint import TINY_LM


def test_the_documentation_has_the_table() -> None:
    text = (ROOT / "docs" / "kv-cache.md").read_text(encoding="utf-8")
    assert "\n".join(kv_cache.table()) in text


def test_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kv_cache, "LM_01B", TINY_LM)
    monkeypatch.setattr(kv_cache, "STEPS", 2)
    results = kv_cache.measure(tmp_path, "fp32", [192], rounds=2)
    assert set(results["samples_ms"]) == {"portable", "static 192", "decomposed 192"}
    assert all(len(samples) == 2 for stages in results["samples_ms"].values() for samples in stages.values())
    kv_cache.show(results)
    assert "decomposed 192" in capsys.readouterr().out
