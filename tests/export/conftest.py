"""Checkpoints and bundles that many tests of the export look at; made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# The models are tiny: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import VARIATIONS, make_checkpoint
from exporting import Bundle, export, plan_of

MakeBundle = Callable[..., Bundle]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a variation; nobody may write to it."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", **VARIATIONS[name])
        return made[name]

    return get


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> MakeBundle:
    """Return the bundle of a variation with a budget of 9 tokens; nobody may write to it."""
    made: dict[tuple[str, str], Bundle] = {}

    def get(name: str = "plain", precision: str = "fp32") -> Bundle:
        if (name, precision) not in made:
            folder = tmp_path_factory.mktemp("bundle") / "tiny"
            made[name, precision] = export(plan_of(checkpoint(name), precision=precision), folder)
        return made[name, precision]

    return get
