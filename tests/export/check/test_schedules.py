"""The graphs of a chain: against lists of operators, and parsed and built by TensorRT-RTX where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from exporting import export, plan_of

from divprune_edge.export.check.asked import ask_tensorrt
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.schedules import METHODS
from divprune_edge.models.targets import TARGETS

real = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="unproven: no TensorRT-RTX (pip install '.[rtx]')",
)
READING = [name for name, method in METHODS.items() if method.watches]


def chain(folder: Path, method: str, dialect: str, **options: Any) -> Path:
    """The demo, cut once behind its third layer or, of four, before the last."""
    (folder / "own.json").write_text(json.dumps({"method": method, "cuts": [{"before": 3, "keep": 20}]}))
    plan = plan_of(CHECKPOINT, 58, schedule=str(folder / "own.json"), dialect=dialect, **options)
    return export(plan, folder / "bundle").folder


@real
@pytest.mark.parametrize("dialect", ["static", "decomposed"])
@pytest.mark.parametrize("method", READING)
def test_a_real_builder_takes_every_graph(method: str, dialect: str, tmp_path: Path) -> None:
    asked = ask_tensorrt(chain(tmp_path, method, dialect, precision="fp16"), TARGETS["rtx4090"], build=True)
    assert {"language_model.0.onnx", "language_model.1.onnx"} <= {answer.file for answer in asked.answers}
    assert [answer.words for answer in asked.answers if answer.words is not None] == []


@pytest.mark.parametrize("method", READING)
@pytest.mark.parametrize(("dialect", "target"), [("decomposed", "agx-orin-64gb"), ("static", "thor")])
def test_nothing_is_against_it(method: str, dialect: str, target: str, tmp_path: Path) -> None:
    """The cache behind the cut counts as many rows as it has."""
    folder = chain(tmp_path, method, dialect)
    report = check_bundle(folder, TARGETS[target], build=False)
    assert report.clean and report.forecast is not None
    row = 2 * 4 * 48 * 4  # keys and values, heads, their width, bytes
    assert report.forecast.need.cache == row * (3 * 512 + 1 * 480)
