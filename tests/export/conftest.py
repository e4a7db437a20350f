"""Checkpoints and bundles that many tests of the export look at; made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

# The models are tiny: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import VARIATIONS, make_checkpoint
from exporting import Bundle, export, plan_of
from qwen_checkpoints import QWEN_VARIATIONS, make_qwen_checkpoint

MakeBundle = Callable[..., Bundle]


@pytest.fixture(autouse=True)
def _tensorrt_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``export check`` asks TensorRT-RTX in processes of its own alone (``check/test_asked.py``): it takes seconds."""
    from divprune_edge.export.check import bundle

    monkeypatch.setattr(bundle, "is_installed", lambda: False)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a variation; nobody may write to it."""

    @cache
    def get(name: str) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
        if name in QWEN_VARIATIONS:
            return make_qwen_checkpoint(folder, **QWEN_VARIATIONS[name])
        return make_checkpoint(folder, **VARIATIONS[name])

    return get


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> MakeBundle:
    """Return the bundle of a variation with a budget of 9 tokens; nobody may write to it."""

    @cache
    def get(name: str = "plain", precision: str = "fp32") -> Bundle:
        folder = tmp_path_factory.mktemp("bundle") / "tiny"
        return export(plan_of(checkpoint(name), precision=precision), folder)

    return get


@pytest.fixture(scope="session")
def quantisable(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a checkpoint whose rows divide into blocks of 32 and of 64, its head tied or not."""

    @cache
    def get(tied: bool = False) -> Path:
        text = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2}
        vision = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
        return make_checkpoint(
            tmp_path_factory.mktemp("quantisable") / "tiny",
            text={**text, "tie_word_embeddings": tied},
            vision=vision,
            tied=tied,
        )

    return get


@pytest.fixture(scope="session")
def quantised(tmp_path_factory: pytest.TempPathFactory, quantisable: Callable[..., Path]) -> MakeBundle:
    """Return a bundle of that checkpoint in a precision; nobody may write to it."""

    @cache
    def get(precision: str, tied: bool = False) -> Bundle:
        folder = tmp_path_factory.mktemp("bundle") / "tiny"
        return export(plan_of(quantisable(tied), precision=precision), folder)

    return get
