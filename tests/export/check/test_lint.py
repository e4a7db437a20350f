"""The linter on graphs that a list refuses, one reason each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from divprune_edge.export.check.findings import Finding
from divprune_edge.export.check.graph import read_graph
from divprune_edge.export.check.lint import lint_graph
from divprune_edge.export.check.tables import table_for

Make = Callable[..., Path]
OLD, NEW = table_for("10.3"), table_for("10.16")


def const(name: str, value: Any, dtype: str = "int64") -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(value, dtype), name)


def lint(path: Path, table: Any = OLD, plugins: tuple[str, ...] = ()) -> list[Finding]:
    return lint_graph(read_graph(path), table, file="g.onnx", plugins=plugins)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_listed_operator_is_clean(one_node: Make) -> None:
    assert lint(one_node("Relu", [("x", "float16", [2, 3])])) == []
    assert lint(one_node("Max", [("x", "int64", [2])])) == []


def test_an_operator_that_is_not_listed(one_node: Make) -> None:
    finding = only(lint(one_node("Det", [("x", "float32", [2, 2])])))
    assert (finding.severity, finding.rule, finding.op, finding.node) == (
        "error",
        "operator",
        "Det",
        "/the/Det",
    )
    assert finding.message == "Det is not in the operator list of TensorRT 10.3"


def test_an_element_type_that_is_not_listed(one_node: Make) -> None:
    finding = only(lint(one_node("CumSum", [("x", "int64", [4])], constants=[const("axis", 0)])))
    assert finding.rule == "dtype"
    assert finding.message.startswith(
        "CumSum of int64 is not in the operator list of TensorRT 10.3: it has bfloat16"
    )
    assert lint(one_node("CumSum", [("x", "float32", [4])], constants=[const("axis", 0)])) == []


def test_types_that_the_list_is_not_about_are_left_alone(one_node: Make) -> None:
    """Indices, conditions and axes have types of their own."""
    indices = const("i", [1])
    assert lint(one_node("Gather", [("x", "float16", [4])], constants=[indices])) == []
    where = [("c", "bool", [4]), ("a", "float16", [4]), ("b", "float16", [4])]
    assert lint(one_node("Where", where)) == []
    bad = [("c", "bool", [4]), ("a", "uint8", [4]), ("b", "uint8", [4])]
    assert "Where of uint8" in lint(one_node("Where", bad))[0].message


def test_the_type_that_a_cast_gives(one_node: Make) -> None:
    assert lint(one_node("Cast", [("x", "uint8", [4])], to=onnx.TensorProto.FLOAT)) == []
    finding = only(lint(one_node("Cast", [("x", "float32", [4])], to=onnx.TensorProto.INT8)))
    assert finding.message.startswith("Cast of int8")


def test_uint8_inside_of_a_graph(tmp_path: Path) -> None:
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4]) for n in "xy")
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["mid"], to=onnx.TensorProto.UINT8),
        onnx.helper.make_node("Cast", ["mid"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "g.onnx"
    )
    assert only(lint(tmp_path / "g.onnx")).rule == "uint8"


@pytest.mark.parametrize(("k", "clean"), [(3839, True), (3840, False)])
def test_the_largest_k(one_node: Make, k: int, clean: bool) -> None:
    path = one_node("TopK", [("x", "float32", [5000])], ["v", "i"], [const("k", [k])])
    assert (lint(path) == []) == clean


def test_k_must_be_a_constant(one_node: Make) -> None:
    path = one_node("TopK", [("x", "float32", [50]), ("k", "int64", [1])], ["v", "i"])
    assert "TopK has a K that is computed" in only(lint(path)).message
    path = one_node("TopK", [("x", "float32", [50])], ["v", "i"], [const("k", [3])], sorted=0)
    assert "sorted = 0" in only(lint(path)).message


def test_axes_must_be_constants(one_node: Make) -> None:
    computed = one_node("Unsqueeze", [("x", "float32", [4]), ("axes", "int64", [1])])
    assert "Unsqueeze has axes that are computed" in only(lint(computed)).message
    slices = [("x", "float32", [4]), ("s", "int64", [1]), ("e", "int64", [1]), ("a", "int64", [1])]
    assert lint(one_node("Slice", slices), table_for("10.1"))[0].rule == "constant axes"
    assert lint(one_node("Slice", slices)) == [], "the changelog of 10.3 lifts it"


def attention(one_node: Make, rank: int = 4, past: bool = False, **options: Any) -> Path:
    shape = [1, 4, 8, 16] if rank == 4 else [1, 8, 64]
    inputs: list[Any] = [(name, "float16", shape) for name in "qkv"]
    order = ["q", "k", "v"]
    if past:
        inputs += [("pk", "float16", [1, 4, 8, 16]), ("pv", "float16", [1, 4, 8, 16])]
        order += ["", "pk", "pv"]
    outputs = ["y", "nk", "nv"] if past else ["y"]
    heads = {} if rank == 4 else {"q_num_heads": 4, "kv_num_heads": 4}
    return one_node("Attention", inputs, outputs, order=order, opset=23, **heads, **options)


def test_attention(one_node: Make) -> None:
    assert lint(attention(one_node), NEW) == []
    assert only(lint(attention(one_node), OLD)).rule == "operator"
    assert {f.message for f in lint(attention(one_node, rank=3), NEW)} == {
        f"Attention's {name} has 3 dimensions; it must have 4" for name in "QKV"
    }
    messages = [f.message for f in lint(attention(one_node, past=True), NEW)]
    assert messages == [
        "Attention's outputs behind the first are not given, by the operator list of TensorRT 10.16",
        "Attention's input past_key is not taken",
        "Attention's input past_value is not taken",
    ]
    assert "mode = 1; it must be 0" in only(lint(attention(one_node, qk_matmul_output_mode=1), NEW)).message


def scatter(one_node: Make, size: int | str = 32, axis: int = -2, rank: int = 4) -> Path:
    past: list[int | str] = [1, 4, size, 16] if rank == 4 else [1, size, 16]
    new = [1, 4, 1, 16] if rank == 4 else [1, 1, 16]
    inputs = [("past", "float16", past), ("new", "float16", new), ("rows", "int64", [1])]
    return one_node("TensorScatter", inputs, opset=24, axis=axis, mode="linear")


def test_tensor_scatter(one_node: Make) -> None:
    assert lint(scatter(one_node), NEW) == []
    assert "size that is known" in only(lint(scatter(one_node, size="capacity"), NEW)).message
    assert any("it must be -2" in f.message for f in lint(scatter(one_node, axis=1), NEW))
    assert len(lint(scatter(one_node, rank=3), NEW)) == 2


def blocks(
    one_node: Make, dtype: str, shape: tuple[int, int] = (128, 8), zero: bool = False, size: int = 64
) -> Path:
    kind = {"int4": ir.DataType.INT4, "int8": ir.DataType.INT8}[dtype]
    data = ir.serde.serialize_tensor(ir.tensor(np.ones(shape, kind.numpy()), dtype=kind, name="w"))
    scale = const("scale", np.ones((shape[0] // size, shape[1])), "float16")
    constants = [data, scale]
    if zero:
        ones = np.ones((shape[0] // size, shape[1]), kind.numpy())
        constants.append(ir.serde.serialize_tensor(ir.tensor(ones, dtype=kind, name="z")))
    return one_node("DequantizeLinear", [], constants=constants, opset=21, block_size=size, axis=0)


def test_blocks_are_for_int4(one_node: Make) -> None:
    assert lint(blocks(one_node, "int4"), NEW) == []
    assert "blocks are for int4 only" in only(lint(blocks(one_node, "int8"), NEW)).message
    assert "last dimension of 7" in only(lint(blocks(one_node, "int4", (128, 7)), NEW)).message
    assert "zero point" in only(lint(blocks(one_node, "int4", zero=True), NEW)).message
    small = only(lint(blocks(one_node, "int4", size=32), NEW))
    assert "int4 in blocks of 32; TensorRT takes 64 or 128" in small.message


def test_opset_21_for_int4_is_a_warning_and_for_others_an_error(one_node: Make) -> None:
    finding = only(lint(blocks(one_node, "int4"), OLD))
    assert (finding.severity, finding.rule) == ("warning", "opset")
    assert {f.severity for f in lint(blocks(one_node, "int8"), OLD)} == {"error"}


def test_the_same_definition_under_a_newer_opset_is_a_warning(one_node: Make) -> None:
    path = one_node("Reshape", [("x", "float32", [4])], constants=[const("s", [2, 2])], opset=21)
    finding = only(lint(path))
    assert finding.severity == "warning"
    assert "Opset 21 is beyond the listed range 9–20" in finding.message
    assert lint(one_node("Relu", [("x", "float32", [4])], opset=21)) == [], (
        "the same definition since opset 14"
    )


def test_a_node_of_another_domain_needs_a_plugin(one_node: Make) -> None:
    path = one_node("Mine", [("x", "float32", [4])], domain="elsewhere")
    assert only(lint(path)).message == "elsewhere::Mine is no standard operator, and no plugin takes it"
    assert lint(path, plugins=("Mine",)) == []


def loop(tmp_path: Path, grows: bool, trips: str = "constant") -> Path:
    """A loop whose carried value keeps its shape, or grows by a row each time."""
    kind = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info
    step = (
        onnx.helper.make_node("Concat", ["state", "row"], ["next"], axis=0)
        if grows
        else onnx.helper.make_node("Add", ["state", "row"], ["next"])
    )
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["go"], ["going"]), step],
        "body",
        [
            info("i", onnx.TensorProto.INT64, []),
            info("go", onnx.TensorProto.BOOL, []),
            onnx.helper.make_tensor_value_info("state", kind, None),
        ],
        [info("going", onnx.TensorProto.BOOL, []), onnx.helper.make_tensor_value_info("next", kind, None)],
    )
    inputs = [info("x", kind, [1, 3]), info("row", kind, [1, 3])]
    constants = [const("yes", True, "bool")]
    if trips == "constant":
        constants.append(const("trips", 5))
    else:
        inputs.append(info("trips", onnx.TensorProto.INT64, []))
    node = onnx.helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)
    after = onnx.helper.make_node("CumSum", ["y", "axis"], ["z"])
    graph = onnx.helper.make_graph(
        [node, after],
        "g",
        inputs,
        [onnx.helper.make_empty_tensor_value_info("z")],
        [*constants, const("axis", 0)],
    )
    path = tmp_path / "loop.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), path)
    return path


def test_what_a_loop_carries_keeps_its_shape(tmp_path: Path) -> None:
    assert lint(loop(tmp_path, grows=False)) == []
    assert only(lint(loop(tmp_path, grows=True))).message.startswith(
        "Loop carries a value of shape [1, 3] into [2, 3]"
    )


def test_shapes_are_known_behind_a_loop(tmp_path: Path) -> None:
    view = read_graph(loop(tmp_path, grows=False))
    assert {node.op: node.outputs[0].shape for node in view.nodes if node.outputs[0]} == {
        "Loop": (1, 3),
        "CumSum": (1, 3),
    }


def test_equal_findings_are_counted(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Det", ["x"], [f"y{i}"], name=f"det{i}") for i in range(3)]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("x", onnx.TensorProto.FLOAT, [2, 2])],
        [info(f"y{i}", onnx.TensorProto.FLOAT, []) for i in range(3)],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "g.onnx"
    )
    finding = only(lint(tmp_path / "g.onnx"))
    assert (finding.count, finding.node) == (3, "det0")


def called(tmp_path: Path, inner: str) -> Path:
    """A local function whose input is called ``inner`` in a graph with values x and other."""
    info = onnx.helper.make_tensor_value_info
    function = onnx.helper.make_function(
        "mine",
        "Twice",
        [inner],
        ["out"],
        [onnx.helper.make_node("Add", [inner, inner], ["out"])],
        [onnx.helper.make_opsetid("", 20)],
    )
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["other"]),
        onnx.helper.make_node("Twice", ["x"], ["y"], domain="mine", name="call"),
    ]
    outputs = [info("y", onnx.TensorProto.FLOAT, [2]), info("other", onnx.TensorProto.FLOAT, [2])]
    graph = onnx.helper.make_graph(nodes, "g", [info("x", onnx.TensorProto.FLOAT, [2])], outputs)
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("mine", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=imports, functions=[function]), tmp_path / "f.onnx")
    return tmp_path / "f.onnx"


def test_names_inside_of_a_function(tmp_path: Path) -> None:
    """Up to 10.7 the parser takes the outer value of that name, with a warning."""
    assert lint(called(tmp_path, "x")) == lint(called(tmp_path, "inside")) == []
    finding = only(lint(called(tmp_path, "other")))
    assert (finding.rule, finding.op, finding.node) == ("function", "Twice", "call")
    assert lint(called(tmp_path, "other"), NEW) == []
