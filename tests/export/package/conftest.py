"""A small package, made once, and unpacked."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from exporting import Silent

from divprune_edge.export.package import archive_path, write_package
from divprune_edge.manifest import MANIFEST
from divprune_edge.models.targets import find_target

TARGET = find_target("agx-orin-64gb")


def relabelled(bundle: Path, folder: Path) -> Path:
    """Copy a bundle whose manifest says that it is for TensorRT 10.3."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["language_model"]["dialect"] = "decomposed"
    manifest["target"] = TARGET.name
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relabelled(demo_bundle, tmp_path_factory.mktemp("for-a-jetson") / "demo")


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
