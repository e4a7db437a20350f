"""One graph against one table: operators, element types, opset, attributes, and the rules."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from divprune_edge.export.check.findings import Finding, Severity, grouped
from divprune_edge.export.check.graph import Call, GraphTensor, GraphView, Node
from divprune_edge.export.check.rules import listed_constraints, violations
from divprune_edge.export.check.tables import OperatorTable

# Further inputs whose element type the list's column is about; elsewhere those of the first input's type.
_MORE_INPUTS = {"Attention": (2,), "OneHot": (2,), "Pow": (1,), "Where": (1, 2)}
_UNKNOWN = "Element types behind operators that are not standard cannot be inferred"
_AS_BEFORE = (
    "Opset {opset} is beyond the listed range {first}–{last}; these nodes are used as they were before"
)
# Operators whose output's element type is their own choice.
_OUTPUT_TOO = ("Cast", "CastLike", "Constant", "ConstantOfShape")


def lint_graph(
    view: GraphView, table: OperatorTable, *, file: str, plugins: tuple[str, ...] = ()
) -> list[Finding]:
    """Return what ``table`` has against a graph.

    Args:
        view: the graph.
        table: of the target's TensorRT.
        file: its name, for the findings.
        plugins: operators of any domain that a plugin takes.
    """

    def found() -> Iterator[Finding]:
        opset = view.opsets.get("", 0)
        for call in view.calls:
            for message in _call(call, table):
                yield Finding(file, "error", "function", call.op, message, call.name)
        for node in view.everything():
            if node.domain and node.op in plugins:
                continue
            for severity, rule, message in _node(node, table, opset):
                op = node.op if severity == "error" or rule == "attribute" else ""
                yield Finding(file, severity, rule, op, message, node.name)

    return grouped(found())


def _node(node: Node, table: OperatorTable, opset: int) -> Iterator[tuple[Severity, str, str]]:
    if node.domain:
        yield (
            "error",
            "operator",
            f"{node.domain}::{node.op} is no standard operator, and no plugin takes it",
        )
        return
    if node.op not in table.operators:
        yield "error", "operator", f"{node.op} is not in the {_of(table)}"
        return
    listed = table.operators[node.op]
    for tensor in _typed(node, opset):
        if tensor.dtype is None:
            yield "warning", "dtype", _UNKNOWN
        elif tensor.dtype not in listed:
            types = ", ".join(sorted(listed))
            yield "error", "dtype", f"{node.op} of {tensor.dtype} is not in the {_of(table)}: it has {types}"
    yield from _opset(node, table, opset)
    for severity, message in _attributes(node, table):
        yield severity, "attribute", message
    for rule, message in violations(node, table):
        yield "error", rule, message


def _attributes(node: Node, table: OperatorTable) -> Iterator[tuple[Severity, str]]:
    """What the checkers refuse; what they leave open, the list may still refuse in words."""
    found = table.checkers.findings(node)
    for subject, clause in listed_constraints(node.op).violations(node).items():
        if subject not in found or found[subject][0] == "warning":
            found[subject] = "error", f"{clause}, by the {_of(table)}"
    yield from found.values()


def _call(call: Call, table: OperatorTable) -> Iterator[str]:
    """The parser's ways with model-local functions, from its source of 10.1; names were mended in 10.8."""
    for name in call.missing:
        yield f"{call.op} leaves out input '{name}' of its local function; every input must be wired"
    if "function names" not in table.lifts:
        for name in call.aliased:
            yield f"{call.op}'s local function has an input '{name}' that is also another value's name outside"


def _of(table: OperatorTable) -> str:
    return f"operator list of TensorRT {table.tensorrt}"


def _opset(node: Node, table: OperatorTable, opset: int) -> Iterator[tuple[Severity, str, str]]:
    """An operator defined anew since the last listed opset; the same definition under a higher number is fine."""
    last = table.opsets[1]
    if opset <= last:
        return
    since = _schema(node.op, opset).since_version
    if since <= last:
        return
    beyond = f"beyond the listed range {table.opsets[0]}–{last}"
    message = f"{node.op} is used as defined in opset {since}, {beyond}"
    if not onnx.defs.has(node.op, last, ""):
        yield "warning", "opset", f"{message}; it is listed, but no older opset has it"
        return
    old = _schema(node.op, last)
    if len(node.inputs) <= old.max_input and set(node.attributes) <= set(old.attributes):
        yield "warning", "opset", f"Opset {opset} is {beyond}, but these nodes are used as they were before"
    elif node.op == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].dtype == "int4":
        # The list names INT4, which no older opset can express; the parser's source of 10.1 reads its blocks.
        yield "warning", "opset", f"{message}; but the list names int4, which opset 21 is the first to have"
    else:
        yield "error", "opset", message


def _typed(node: Node, opset: int) -> list[GraphTensor]:
    """Return the inputs and outputs whose element types the list's column is about."""
    if node.op in ("Loop", "If", "Scan"):
        return [tensor for tensor in node.inputs if tensor is not None]
    chosen: list[GraphTensor | None] = []
    kinds = _kinds(node.op, opset)
    data = {kinds[0]} if kinds else set()
    for position, tensor in enumerate(node.inputs):
        kind = kinds[min(position, len(kinds) - 1)] if kinds else ""
        if (kind in data or position in _MORE_INPUTS.get(node.op, ())) and not kind.startswith("tensor("):
            chosen.append(tensor)
    if node.op in _OUTPUT_TOO:
        chosen.append(node.outputs[0])
        if node.op == "ConstantOfShape":
            chosen = chosen[-1:]
    return [tensor for tensor in chosen if tensor is not None]


def _kinds(op: str, opset: int) -> list[str]:
    return [str(entry.type_str) for entry in _schema(op, opset).inputs]


def _schema(op: str, opset: int) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(op, opset, "")
