"""A small package, made once, and unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from conftest import run_module
from exporting import Silent

from divprune_edge.export.package import archive_path, write_package
from divprune_edge.manifest import MANIFEST, read_manifest
from divprune_edge.models.targets import find_target

TARGET = find_target("agx-orin-64gb")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint for TensorRT 10.3, in float32 so that its answer is the same everywhere."""
    folder = tmp_path_factory.mktemp("for-a-jetson") / "demo"
    options = ["--prune", "0.9", "--dialect", "decomposed", "--no-verify", "--output", str(folder)]
    result = run_module("export", "llava", *options)
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(folder).model_copy(update={"target": TARGET.name})
    (folder / MANIFEST).write_text(manifest.to_json())
    return folder


@pytest.fixture(scope="session")
def archive(bundle: Path) -> Path:
    path = archive_path(bundle, TARGET)
    write_package(bundle, TARGET, path, force=False, report=Silent())
    return path


@pytest.fixture(scope="session")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.iterdir())
