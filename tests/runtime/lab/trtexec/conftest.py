"""Bundles for TensorRT, and a plugin library that is none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import run_module
from plugins_emulation import write_library


@pytest.fixture(scope="session")
def dialect_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The demo checkpoint in a dialect for TensorRT, exported once each."""

    @cache
    def get(dialect: str) -> Path:
        folder = tmp_path_factory.mktemp("bundles") / dialect
        options = ("--prune", "0.9", "--no-verify", "--dialect", dialect, "--output", str(folder))
        result = run_module("export", "llava", *options)
        assert result.returncode == 0, result.stderr
        return folder

    return get


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a library that is never opened."""
    return write_library(tmp_path_factory.mktemp("library"))
