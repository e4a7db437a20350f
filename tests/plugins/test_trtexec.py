"""Which selector file each TensorRT reads, and how trtexec is told of the plugin."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from raising import refused

from divprune_edge.manifest import read_manifest
from divprune_edge.plugins.trtexec import needs_stripped, plugin_options

LIBRARY = Path("/opt/lib/libdivprune_plugins.so")


def test_the_registry_loads_the_plugin() -> None:
    """Not ``--staticPlugins``, which only opens a library that registers itself."""
    assert plugin_options(LIBRARY) == [f"--dynamicPlugins={LIBRARY}"]


@pytest.mark.parametrize(
    ("version", "stripped"),
    [("10.0", True), ("10.3.0", True), ("10.6", True), ("10.7", False), ("11.0", False)],
)
def test_which_file(version: str, stripped: bool) -> None:
    assert needs_stripped(version) == stripped


@pytest.mark.parametrize(
    ("version", "code"),
    [("8.6", "tensorrt-too-old"), ("ten", "tensorrt-version-invalid"), ("10", "tensorrt-version-invalid")],
)
def test_what_is_no_version(version: str, code: str) -> None:
    with refused(code, version):
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
