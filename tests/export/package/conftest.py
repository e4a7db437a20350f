"""A small package, made once, and unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from conftest import run_module

from divprune_edge.export.package import archive_path
from divprune_edge.models.targets import find_target

TARGET = find_target("agx-orin-64gb")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint for TensorRT 10.3, in float32 so that its answer is the same everywhere."""
    folder = tmp_path_factory.mktemp("for-a-jetson") / "demo"
    options = ["--target", TARGET.name, "--precision", "fp32", "--no-verify", "--output", str(folder)]
    result = run_module("export", "llava", "--prune", "0.9", "--package", *options)
    assert result.returncode == 0, result.stderr
    return archive_path(folder, TARGET)


@pytest.fixture(scope="session")
def bundle(archive: Path) -> Path:
    return archive.parent / "demo"


@pytest.fixture(scope="session")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.iterdir())
