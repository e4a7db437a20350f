"""Tables come from a published list, and a list that has changed or is damaged is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raising import refused

from divprune_edge.export.check.generate_tables import main, read_operators, table_json

REVISION = "0123456789abcdef0123456789abcdef01234567"
LIST = """<!--- a comment -->

# Supported ONNX Operators

TensorRT 10.9 supports operators in the inclusive range of opset 9 to opset 22. More is elsewhere.

| Not the table | of operators |
|---|---|
| Abs | N |

| Operator   | Supported  | Supported Types | Restrictions |
|------------|------------|-----------------|--------------|
| Abs        | Y          | FP32, FP16, INT64 |
| Selu       | Y          | FP32, | `alpha` must be something |
| Bernoulli  | N          |
| DequantizeLinear | Y | INT8, INT4 | `x_zero_point` must be zero |
| Xor        | Y          | BOOL
"""


def test_a_list_becomes_a_table() -> None:
    table = read_operators(LIST)
    assert (table["tensorrt"], table["opsets"]) == ("10.9", [9, 22])
    assert table["operators"] == {
        "Abs": ["float32", "float16", "int64"],
        "DequantizeLinear": ["int8", "int4"],
        "Selu": ["float32"],
        "Xor": ["bool"],
    }
    assert table["unsupported"] == ["Bernoulli"]


def test_as_a_command(tmp_path: Path) -> None:
    source, output = tmp_path / "operators.md", tmp_path / "table.json"
    source.write_text(LIST, encoding="utf-8")
    main([str(source), str(output), "--source", "a list", "--revision", REVISION, "--tensorrt", "10.10"])
    table = json.loads(output.read_text(encoding="utf-8"))
    assert (table["source"], table["revision"], table["tensorrt"]) == ("a list", REVISION, "10.10")
    assert "must be" not in output.read_text(encoding="utf-8"), "no prose of the list is stored"
    with refused("source-unreadable", "missing.md"):
        main([str(tmp_path / "missing.md"), str(output), "--revision", REVISION])


@pytest.mark.parametrize(
    ("before", "after", "code", "name"),
    [
        ("opset 9 to opset 22", "many opsets", "source-not-recognized", "opsets"),
        ("FP32, FP16, INT64", "FP32, FP12", "source-damaged", "'FP12'"),
        ("| Bernoulli  | N          |", "| Bernoulli | maybe |", "source-damaged", "maybe"),
        ("| Xor        | Y          | BOOL", "| Xor | Y | , |", "source-damaged", "'Xor'"),
        ("| Bernoulli  | N          |", "| Abs | N |", "source-damaged", "'Abs' twice"),
        ("| Operator   | Supported  |", "| Op | Yes |", "source-not-recognized", "table"),
    ],
)
def test_a_damaged_list_is_one_sentence(before: str, after: str, code: str, name: str) -> None:
    assert before in LIST
    with refused(code, name) as caught:
        read_operators(LIST.replace(before, after))
    assert "\n" not in str(caught.value)


def test_a_revision_is_a_commit() -> None:
    with refused("revision-invalid", "--revision 'main'"):
        table_json(LIST, "a list", "main")
