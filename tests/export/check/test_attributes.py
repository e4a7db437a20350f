"""What the parser's checkers ask of attributes: which checkers serve which TensorRT, and graphs that they refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from exporting import Bundle

from divprune_edge.console import run
from divprune_edge.export.check.attributes import READ, checkers_for
from divprune_edge.export.check.bundle import check_bundle
from divprune_edge.export.check.findings import Finding
from divprune_edge.export.check.graph import read_graph
from divprune_edge.export.check.lint import lint_graph
from divprune_edge.export.check.printing import show_report
from divprune_edge.export.check.tables import table_for
from divprune_edge.export.cli import app
from divprune_edge.models.targets import TARGETS

Make = Callable[..., Path]
Demo = Callable[..., Bundle]


def lint(path: Path, tensorrt: str) -> list[Finding]:
    """Return what is said of attributes (10.14 is held against a list that ends at opset 20)."""
    found = lint_graph(read_graph(path), table_for(tensorrt), file="g.onnx")
    return [finding for finding in found if finding.rule != "opset"]


def only(findings: list[Finding]) -> tuple[str, str]:
    assert len(findings) == 1, findings
    assert findings[0].rule == "attribute"
    return findings[0].severity, findings[0].message


@pytest.mark.parametrize(
    ("version", "tables"),
    [
        ("10.1", ("10.1",)),
        ("10.3", ("10.1", "10.11")),
        ("10.3.0", ("10.1", "10.11")),
        ("10.10", ("10.1", "10.11")),
        ("10.13", ("10.11", "10.14")),
        ("10.14.1", ("10.14",)),
        ("10.16", ("10.14", "11.0")),
        ("11.0", ("11.0",)),
        ("11.4", ("11.0",)),
    ],
)
def test_which_checkers_serve_which_version(version: str, tables: tuple[str, ...]) -> None:
    checkers = checkers_for(version)
    assert tuple(table.tensorrt for table in checkers.tables) == tables
    assert checkers.own == (version in ("10.1", "10.14.1", "11.0"))
    assert checkers.provenance.startswith(f"checkers of {' and '.join(tables)} (onnx/onnx-tensorrt, ")
    assert checkers.provenance.endswith(f"; those of {version} were not read") != checkers.own


def test_the_tables() -> None:
    for version in READ:
        (table,) = checkers_for(version).tables
        assert table.tensorrt == version
        assert re.fullmatch("[0-9a-f]{40}", table.revision)
        assert len(table.operators) > 180
    for version in ("10.1", "10.15"):
        for op in table_for(version).operators:
            assert not checkers_for(version).tables[-1].operators[op].refused, "the list names it"


def attention(one_node: Make, **attributes: Any) -> Path:
    inputs = [(name, "float16", [1, 4, 8, 16]) for name in "qkv"]
    return one_node("Attention", inputs, opset=23, **attributes)


@pytest.mark.parametrize(
    ("tensorrt", "severity", "ending"),
    [
        ("10.14", "error", "TensorRT 10.14"),
        ("10.16", "error", "TensorRT 10.14 and 11.0; those of 10.16 itself were not read"),
        ("11.0", "error", "TensorRT 11.0"),
        ("11.4", "warning", "TensorRT 11.0; those of 11.4 itself were not read, so for it this is unknown"),
    ],
)
def test_an_attribute_that_must_be_left_out(
    one_node: Make, tensorrt: str, severity: str, ending: str
) -> None:
    assert lint(attention(one_node, scale=1.0, softcap=0.0), tensorrt) == []
    found = only(lint(attention(one_node, softmax_precision=onnx.TensorProto.FLOAT), tensorrt))
    clause = "Attention's attribute softmax_precision is not taken, say the checkers of"
    assert found == (severity, f"{clause} {ending}")


def test_an_attribute_that_must_have_a_value(one_node: Make) -> None:
    path = one_node("LpNormalization", [("x", "float32", [2, 3])], p=3)
    clause = "LpNormalization has p = 3; it must be 1 or 2, say the checkers of TensorRT"
    assert only(lint(path, "10.1")) == ("error", f"{clause} 10.1")
    path = one_node("LpNormalization", [("x", "float32", [2, 3])], p=1)
    assert lint(path, "10.1") == []
    inputs = [("x", "float32", [1, 1, 2, 2]), ("roi", "float32", [1, 4]), ("i", "int64", [1])]
    assert lint(one_node("RoiAlign", inputs, mode="max"), "10.1") == []
    assert "has mode = sum; it must be avg or max" in only(
        lint(one_node("RoiAlign", inputs, mode="sum"), "10.1")
    )[1]  # fmt: skip


def test_outputs_and_neighbours_that_disagree(one_node: Make) -> None:
    inputs = [("x", "float32", [1, 1, 4, 4])]
    path = one_node("BatchNormalization", [*inputs, *((n, "float32", [1]) for n in "abcd")], ["y", "m", "v"])
    clause = "BatchNormalization's outputs behind the first are not given, say the checkers of TensorRT 10.11"
    assert lint(path, "10.1") == []
    assert only(lint(path, "10.11")) == ("error", clause)
    assert only(lint(path, "10.3")) == (
        "warning",
        f"{clause}, but not those of 10.1; those of 10.3 itself were not read, so for it this is unknown",
    )


def test_an_attribute_that_the_table_has_not_read(one_node: Make) -> None:
    path = one_node("ArgMax", [("x", "float32", [4])], axis=0, select_last_index=1)
    severity, message = only(lint(path, "11.0"))
    assert severity == "warning"
    assert message.startswith("ArgMax's attribute select_last_index is checked by TensorRT 11.0 in a way")
    inputs = [("x", "float32", [4]), ("i", "int64", [1]), ("u", "float32", [1])]
    scatter = one_node("ScatterElements", inputs, axis=0)
    assert lint(scatter, "10.14") == []
    assert "attribute axis is checked by TensorRT 11.0" in only(lint(scatter, "11.0"))[1], "any attribute"


def test_what_the_list_says_in_words_is_said_once(one_node: Make) -> None:
    softcap = attention(one_node, softcap=30.0)
    clause = "Attention has softcap = 30.0; it must be "
    for version in ("10.14", "10.16", "11.0"):
        assert only(lint(softcap, version))[1].startswith(f"{clause}0.0, say the checkers")
    assert only(lint(softcap, "11.4")) == ("error", f"{clause}0, by the operator list of TensorRT 11.4")
    inputs = [("x", "float32", [2, 4]), ("s", "float32", [4])]
    norm = one_node("LayerNormalization", inputs, ["y", "mean"])
    for version in ("10.1", "10.3"):
        assert only(lint(norm, version))[1].endswith(f"by the operator list of TensorRT {version}")
    assert only(lint(norm, "10.11"))[1].endswith("say the checkers of TensorRT 10.11")


def write(bundle: Path, folder: Path, softmax_precision: int | None) -> None:
    """Copy a bundle, with or without the attribute on every Attention of the language model."""
    shutil.copytree(bundle, folder)
    model = onnx.load(folder / "language_model.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    assert nodes
    for node in nodes:
        kept = [a for a in node.attribute if a.name != "softmax_precision"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if softmax_precision is not None:
            node.attribute.append(onnx.helper.make_attribute("softmax_precision", softmax_precision))
    onnx.save(model, folder / "language_model.onnx")


def command(capsys: pytest.CaptureFixture[str], folder: str, target: str) -> tuple[Any, list[Any]]:
    with pytest.raises(SystemExit) as ended:
        run(app, ["check", folder, "--target", target, "--json"], program="python -m export")
    found = json.loads(capsys.readouterr().out)
    assert found["attributes"].startswith("checkers of 10.14 and 11.0")
    return ended.value.code or 0, found["findings"]


def test_softmax_precision_on_a_real_bundle(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT's parser refuses it; the tables of operators alone let it pass."""
    with_it, without = tmp_path / "with", tmp_path / "without"
    write(demo("static").folder, with_it, onnx.TensorProto.FLOAT)
    write(demo("static").folder, without, None)
    for target in ("thor", "h100"):
        assert command(capsys, str(without), target) == (0, [])
        code, (finding,) = command(capsys, str(with_it), target)
        assert code == 1
        assert (finding["severity"], finding["rule"], finding["operator"]) == (
            "error",
            "attribute",
            "Attention",
        )
        assert finding["count"] == 4, "every layer"
    newest = check_bundle(with_it, replace(TARGETS["thor"], tensorrt="11.0"))
    assert [f.message for f in newest.findings if f.severity == "error"] == [
        "Attention's attribute softmax_precision is not taken, say the checkers of TensorRT 11.0"
    ]
    assert check_bundle(without, replace(TARGETS["thor"], tensorrt="11.0")).clean
    report = check_bundle(demo("decomposed").folder, TARGETS["orin-nano-8gb"])
    assert report.clean
    show_report(report)
    assert "Attributes: checkers of 10.1 and 10.11 (" in capsys.readouterr().out
