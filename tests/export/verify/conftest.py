"""One sound bundle, deep enough to have a late layer, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from exporting import Bundle, export, plan_of

from divprune_edge.export.plan import ExportPlan


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ExportPlan:
    """Six decoder layers with as many key-value heads as heads, so that q, k and v have one shape."""
    return plan_of(make_checkpoint(tmp_path_factory.mktemp("deep") / "tiny", text={"num_hidden_layers": 6}))


@pytest.fixture(scope="session")
def sound(plan: ExportPlan, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(plan, tmp_path_factory.mktemp("sound") / "bundle")


@pytest.fixture
def staged(sound: Bundle, tmp_path: Path) -> Path:
    """A copy of the sound bundle that a test may damage."""
    return shutil.copytree(sound.folder, tmp_path / "bundle")
