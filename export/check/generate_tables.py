"""From a parser's published list of operators to the table that the linter reads.

``python -m divprune_edge.export.check.generate_tables OPERATORS.md OUTPUT.json --source … --revision …``

The list is ``docs/operators.md`` of the repository onnx/onnx-tensorrt, at the revision that a release of TensorRT
was built from. Operators, element types, the range of opsets and the version are taken over; what the list says of
restrictions in words is not stored: those that matter here are rules in :mod:`divprune_edge.export.check.rules`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.export.check.generate import run, write_table, written

DTYPES = {
    "FP32": "float32",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP8": "float8e4m3fn",
    "FP4": "float4e2m1",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "INT4": "int4",
    "UINT8": "uint8",
    "BOOL": "bool",
    # A slip in the list of 10.1, at ConstantOfShape.
    "INF64": "int64",
}
"""The list's names of element types -> ours."""

_RANGE = re.compile(
    r"TensorRT (\d+\.\d+) supports operators in the inclusive range of opset (\d+) to opset (\d+)"
)
_HEADER = ["operator", "supported", "supported types"]


def read_operators(text: str) -> dict[str, Any]:
    """Return version, opsets, and operator -> element types; an unsupported operator is in a list of its own.

    Raises:
        UserError: the text is not such a list, or has an element type that is not known.
    """
    found = _RANGE.search(text)
    if found is None:
        raise UserError(
            "The list does not say which TensorRT and which opsets it is for: give docs/operators.md of a release "
            "of onnx/onnx-tensorrt.",
            code="source-not-recognized",
        )
    operators: dict[str, list[str]] = {}
    refused: list[str] = []
    in_table = False
    for line in text.splitlines():
        if not line.startswith("|"):
            in_table = False
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if [cell.lower() for cell in cells[:3]] == _HEADER:
            in_table = True
        elif in_table and not set(cells[0]) <= set("-: "):
            name, supported = cells[0], cells[1] if len(cells) > 1 else ""
            if name in operators or name in refused:
                raise UserError(
                    f"The list has operator '{name}' twice: it is damaged, fetch it again.",
                    code="source-damaged",
                )
            if supported == "N":
                refused.append(name)
            elif supported == "Y" and len(cells) > 2:
                operators[name] = _types(name, cells[2])
            else:
                raise UserError(
                    f"The list's row of operator '{name}' reads '{line.strip()}', expected Y with element types, or "
                    "N: the format has changed or the file is damaged.",
                    code="source-damaged",
                )
    if not operators:
        raise UserError(
            "The list has no table of operators: give docs/operators.md of onnx/onnx-tensorrt.",
            code="source-not-recognized",
        )
    return {
        "tensorrt": found.group(1),
        "opsets": [int(found.group(2)), int(found.group(3))],
        "operators": dict(sorted(operators.items())),
        "unsupported": sorted(refused),
    }


def _types(name: str, cell: str) -> list[str]:
    names = [piece.strip() for piece in cell.split(",") if piece.strip()]
    for piece in names:
        if piece not in DTYPES:
            raise UserError(
                f"The list's row of operator '{name}' has the element type '{piece}', which is not known: add it to "
                "DTYPES of this script.",
                code="source-damaged",
            )
    if not names:
        raise UserError(
            f"The list's row of operator '{name}' has no element types: the file is damaged.",
            code="source-damaged",
        )
    return list(dict.fromkeys(DTYPES[piece] for piece in names))


def table_json(text: str, source: str, revision: str, tensorrt: str | None = None) -> str:
    """Return the table as JSON, one operator a line; ``tensorrt`` overrules the version that the list's head names.

    Raises:
        UserError: see :func:`read_operators`; or a revision that is no commit.
    """
    table = {"source": source, "revision": revision, **read_operators(text)}
    if tensorrt is not None:
        table["tensorrt"] = tensorrt
    return written(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one table."""
    write_table(arguments, table_json, "docs/operators.md", dated=True)


if __name__ == "__main__":
    run(main)
