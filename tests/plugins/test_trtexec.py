"""The trtexec line for each TensorRT, and the file that it reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conftest import run_module
from plugins_emulation import write_library

from divprune_edge.errors import UserError
from divprune_edge.manifest import read_manifest
from divprune_edge.plugins.trtexec import build_command, needs_stripped

LIBRARY = Path("/opt/lib/libdivprune_plugins.so")
SHAPES = {"visual_tokens": (1, 576, 4096), "valid": (1, 576)}


def line(version: str, **options: bool) -> list[str]:
    return build_command(version, LIBRARY, Path("b/selectors/divprune-58.onnx"), SHAPES, **options).split()


def test_the_line_for_jetpack_6() -> None:
    shapes = "visual_tokens:1x576x4096,valid:1x576"
    assert line("10.3") == [
        "trtexec",
        "--onnx=b/selectors/divprune-58.onnx",
        "--saveEngine=divprune-58.plan",
        f"--dynamicPlugins={LIBRARY}",
        "--stronglyTyped",
        f"--minShapes={shapes}",
        f"--optShapes={shapes}",
        f"--maxShapes={shapes}",
    ]


@pytest.mark.parametrize("version", ["10.3", "10.16.2", "11.0", "11.4.1.2"])
def test_every_version(version: str) -> None:
    command = line(version)
    assert f"--dynamicPlugins={LIBRARY}" in command
    assert not [option for option in command if option.startswith("--staticPlugins")]
    assert ("--stronglyTyped" in command) == version.startswith("10.")
    assert f"--setPluginsToSerialize={LIBRARY}" in line(version, embed=True)


def test_names_with_spaces_are_quoted() -> None:
    command = build_command("11.0", Path("/my libs/x.so"), Path("a b/s.onnx"), SHAPES)
    assert "'--dynamicPlugins=/my libs/x.so'" in command


@pytest.mark.parametrize(
    ("version", "stripped"),
    [("10.0", True), ("10.3.0", True), ("10.6", True), ("10.7", False), ("11.0", False)],
)
def test_which_file(version: str, stripped: bool) -> None:
    assert needs_stripped(version) == stripped


@pytest.mark.parametrize(
    ("version", "sentence"),
    [("8.6", "no plugins of this kind"), ("ten", "not a TensorRT version"), ("10", "such as")],
)
def test_what_is_no_version(version: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        needs_stripped(version)


def test_the_stripped_file_has_the_node_and_no_function(demo_bundle: Path) -> None:
    entry = read_manifest(demo_bundle).selectors[0]
    assert entry.stripped == f"selectors/stripped/{entry.id}.onnx"
    whole, stripped = onnx.load(demo_bundle / entry.file), onnx.load(demo_bundle / entry.stripped)
    onnx.checker.check_model(stripped)
    assert [function.name for function in whole.functions] == ["MaxMinDiversity"]
    assert not stripped.functions
    assert stripped.graph == whole.graph
    assert stripped.opset_import == whole.opset_import
    (node,) = [node for node in stripped.graph.node if node.op_type == "MaxMinDiversity"]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes == {"k": entry.keep, "plugin_version": b"1", "plugin_namespace": b""}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    return write_library(tmp_path)


@pytest.mark.parametrize(("version", "folder"), [("10.3", "selectors/stripped"), ("10.15", "selectors")])
def test_the_command(demo_bundle: Path, library: Path, version: str, folder: str) -> None:
    options = ["--tensorrt", version, "--library", str(library)]
    result = run_module("plugins", "trtexec", str(demo_bundle), *options)
    assert result.returncode == 0, result.stderr
    assert f"--onnx={demo_bundle}/{folder}/divprune-58.onnx" in result.stdout
    assert "visual_tokens:1x576x" in result.stdout


def test_the_command_says_what_is_wrong(demo_bundle: Path, library: Path) -> None:
    options = ["--tensorrt", "10.3", "--library", str(library)]
    result = run_module("plugins", "trtexec", str(demo_bundle), *options, "--selector", "divprune-9")
    assert result.returncode == 2
    assert "has no selector 'divprune-9': it has divprune-58" in result.stderr
    assert result.stderr.count("\n") == 1
