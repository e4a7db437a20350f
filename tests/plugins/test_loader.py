"""Finding, checking and registering the library."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fake_cuda import PluginRegistry
from plugins_emulation import RECORDED, write_library
from raising import failed, refused

from divprune_edge.plugins import abi, loader
from divprune_edge.plugins.loader import OPERATORS_VARIABLE, Library, find_library, find_operators, register
from divprune_edge.plugins.record import LIBRARY, OPERATORS, record_of


def test_a_library_is_found_with_its_facts(tmp_path: Path) -> None:
    library = find_library(write_library(tmp_path))
    assert library.path == tmp_path / LIBRARY
    assert library.record.architectures == (87,)
    assert library.record.tensorrt == "10.16.0"


def test_none_is_built(tmp_path: Path) -> None:
    with refused("plugin-missing", "python -m plugins build"):
        find_library(tmp_path)


@pytest.mark.parametrize(
    ("changes", "code", "given"),
    [
        ({"version": "0.0.1"}, "plugin-version-mismatch", "divprune-edge 0.0.1"),
        ({"abi": 1}, "plugin-version-mismatch", "interface 1"),
        ({"sha256": "0" * 64}, "plugin-changed", "plugins build"),
    ],
)
def test_another_library(tmp_path: Path, changes: dict[str, object], code: str, given: str) -> None:
    with refused(code, given):
        find_library(write_library(tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', "\udcff"])
def test_a_record_that_cannot_be_understood(tmp_path: Path, content: str) -> None:
    write_library(tmp_path)
    record_of(tmp_path / LIBRARY).write_bytes(content.encode("utf-8", "surrogateescape"))
    with refused("plugin-record-invalid"):
        find_library(tmp_path)
    record_of(tmp_path / LIBRARY).unlink()
    with refused("plugin-record-invalid", "is missing"):
        find_library(tmp_path)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    RECORDED.write(tmp_path)
    assert json.loads(record_of(tmp_path / LIBRARY).read_text())["architectures"] == [87]


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    with refused("plugin-unloadable"):
        abi.load(find_library(write_library(tmp_path)).path)


def test_operators_are_found_where_they_are_built_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OPERATORS_VARIABLE, raising=False)
    monkeypatch.setattr(loader, "DEFAULT_FOLDER", tmp_path / "package")
    assert find_operators() is None
    (tmp_path / "package").mkdir()
    write_library(tmp_path / "package", OPERATORS, onnxruntime=23)
    found = find_operators()
    assert found is not None
    assert (found.path.parent.name, found.record.onnxruntime) == ("package", 23)
    monkeypatch.setenv(OPERATORS_VARIABLE, "off")
    assert find_operators() is None
    monkeypatch.setenv(OPERATORS_VARIABLE, str(tmp_path))
    with refused("plugin-missing", tmp_path / OPERATORS, "--onnxruntime-include"):
        find_operators()
    write_library(tmp_path, OPERATORS, version="0.0.1")
    with refused("plugin-version-mismatch", "divprune-edge 0.0.1"):
        find_operators()
    write_library(tmp_path, OPERATORS, sha256="0" * 64)
    with refused("plugin-changed", "--onnxruntime-include"):
        find_operators()


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return find_library(write_library(tmp_path))


def test_registering_once(library: Library) -> None:
    registry = PluginRegistry()
    register(registry, "10.3.0", library)
    register(registry, "10.3.0", library)
    assert registry.loaded == [str(library.path)]


def test_registering_what_does_not_fit(library: Library) -> None:
    with refused("plugin-tensorrt-mismatch", "10.16.0", "11.4.0.106"):
        register(PluginRegistry(), "11.4.0.106", library)
    bare = Library(library.path, dataclasses.replace(library.record, tensorrt=None))
    with refused("plugin-without-tensorrt"):
        register(PluginRegistry(), "10.3.0", bare)
    for registry in (PluginRegistry(accepts=False), PluginRegistry(has_creator=False)):
        with failed("plugin-not-accepted"):
            register(registry, "10.3.0", library)
