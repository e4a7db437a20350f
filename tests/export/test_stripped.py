"""The selector file that a TensorRT with the plugin reads where its parser would prefer the function."""

from __future__ import annotations

from pathlib import Path

import onnx

from divprune_edge.manifest import read_manifest


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
