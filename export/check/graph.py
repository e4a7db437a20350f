"""An ONNX file as the linter sees it: every node with the types, shapes and constants at its inputs and outputs.

Weights are not read. Model-local functions are inlined, as TensorRT's parser does, and the body of each Loop is
looked at by itself with the shapes that enter its first iteration (ONNX's own inference lets go of the shapes of
carried values).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import onnx.shape_inference

from divprune_edge.errors import UserError
from divprune_edge.manifest import RESTORE

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class GraphTensor:
    """One value: element type in ONNX's lower-case names, shape with None for what is not known.

    ``constant`` is its content where that is in the file itself; ``stored`` says that it is a weight or constant at
    all. An optional input that is left out is None instead.
    """

    name: str
    dtype: str | None
    shape: Shape | None
    stored: bool = False
    constant: npt.NDArray[Any] | None = None
    is_input: bool = False
    is_output: bool = False

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None where not known."""
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True)
class Node:
    """One node with its surroundings. ``body`` are the nodes of a Loop's body, ``carried`` its shapes before/after."""

    name: str
    op: str
    domain: str
    inputs: tuple[GraphTensor | None, ...]
    outputs: tuple[GraphTensor | None, ...]
    attributes: Mapping[str, Any]
    body: tuple[Node, ...] = ()
    carried: tuple[tuple[GraphTensor, GraphTensor], ...] = ()

    def input(self, index: int) -> GraphTensor | None:
        """Return an input, None where it is not wired."""
        return self.inputs[index] if index < len(self.inputs) else None

    def everything(self) -> Iterator[Node]:
        """Yield the node and what is inside it."""
        yield self
        for inner in self.body:
            yield from inner.everything()


@dataclass(frozen=True)
class Call:
    """A node that a model-local function stands for.

    ``aliased`` are inputs of the function that go by the name of another value outside, ``missing`` those that the
    node does not wire.
    """

    name: str
    op: str
    aliased: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class GraphView:
    """All nodes of a file in order, its opsets by domain (the standard one is ""), and what calls functions."""

    nodes: tuple[Node, ...]
    opsets: Mapping[str, int]
    weights: Mapping[str, GraphTensor]
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    calls: tuple[Call, ...] = ()

    def everything(self) -> Iterator[Node]:
        """Yield all nodes, those of loops' bodies included."""
        for node in self.nodes:
            yield from node.everything()


def read_graph(path: Path, dims: Mapping[str, int] | None = None) -> GraphView:
    """Read a graph and infer its types and shapes.

    Args:
        path: the ONNX file; its external data is not touched.
        dims: numbers for symbolic dimensions of the inputs, where shapes are to be concrete.

    Raises:
        UserError: it cannot be read.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror or error}): make it readable for this user.",
            code="graph-unreadable",
        ) from error
    except Exception as error:
        raise UserError(
            f"'{path}' cannot be read as ONNX ({error}): {RESTORE}.", code="graph-unreadable"
        ) from error
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dims and dim.dim_param in dims:
                dim.dim_value = dims[dim.dim_param]
    if dims:  # declared shapes of outputs are symbolic: let inference find them
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
    calls = _calls(model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    opsets = {_domain(entry.domain): entry.version for entry in model.opset_import}
    reader = _Reader(onnx.shape_inference.infer_shapes(model, data_prop=True), opsets)
    view = reader.view()
    if reader.loops:  # what comes after a loop follows from what is carried out of it
        names = {tensor.name for tensor in reader.loops}
        kept = [value for value in model.graph.value_info if value.name not in names]
        del model.graph.value_info[:]
        model.graph.value_info.extend([*kept, *(_value_info(t.name, t) for t in reader.loops)])
        view = _Reader(onnx.shape_inference.infer_shapes(model, data_prop=True), opsets).view()
    return replace(view, calls=calls)


def _calls(model: Any) -> tuple[Call, ...]:
    functions = {(function.domain, function.name): function for function in model.functions}
    graph = model.graph
    outside = {value.name for value in (*graph.input, *graph.initializer)}
    outside |= {name for node in graph.node for name in node.output}
    found = []
    for node in graph.node:
        function = functions.get((node.domain, node.op_type))
        if function is not None:
            wired = dict(zip(function.input, node.input, strict=False))
            found.append(
                Call(
                    name=node.name,
                    op=node.op_type,
                    aliased=tuple(i for i, o in wired.items() if i != o and i in outside),
                    missing=tuple(i for i in function.input if not wired.get(i)),
                )
            )
    return tuple(found)


@dataclass
class _Reader:
    """Turns one inferred model into nodes."""

    model: Any
    opsets: dict[str, int]
    known: dict[str, GraphTensor] = field(default_factory=dict)
    loops: list[GraphTensor] = field(default_factory=list)

    def view(self) -> GraphView:
        graph = self.model.graph
        outputs = {value.name for value in graph.output}
        for value in graph.value_info:
            self.known[value.name] = _tensor(value)
        for value in graph.input:
            self.known[value.name] = _tensor(value, is_input=True)
        for value in graph.output:
            self.known[value.name] = _tensor(value, is_output=True)
        weights = {tensor.name: _weight(tensor) for tensor in graph.initializer}
        self.known |= weights
        nodes = []
        for node in graph.node:
            if node.op_type == "Constant" and not _domain(node.domain):
                self._fold(node)
            nodes.append(self._node(node))
        return GraphView(
            nodes=tuple(nodes),
            opsets=self.opsets,
            weights=weights,
            inputs=tuple(self._at(value.name) for value in graph.input if value.name not in weights),
            outputs=tuple(self._at(name) for name in outputs),
        )

    def _at(self, name: str) -> GraphTensor:
        return self.known.get(name) or GraphTensor(name, None, None)

    def _fold(self, node: Any) -> None:
        for attribute in node.attribute:
            if attribute.name == "value":
                self.known[node.output[0]] = _weight(attribute.t, node.output[0])

    def _node(self, node: Any) -> Node:
        attributes = {
            attribute.name: onnx.helper.get_attribute_value(attribute)
            for attribute in node.attribute
            if attribute.name != "body"
        }
        inputs = tuple(self._at(name) if name else None for name in node.input)
        body: tuple[Node, ...] = ()
        carried: tuple[tuple[GraphTensor, GraphTensor], ...] = ()
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                body, carried, results = self._body(attribute.g, inputs)
                for name, tensor in zip(node.output, results, strict=False):
                    if self._at(name).shape is None:
                        self.known[name] = replace(tensor, name=name, is_output=self._at(name).is_output)
                        self.loops.append(self.known[name])
        return Node(
            name=node.name,
            op=node.op_type,
            domain=_domain(node.domain),
            inputs=inputs,
            outputs=tuple(self._at(name) if name else None for name in node.output),
            attributes=attributes,
            body=body,
            carried=carried,
        )

    def _body(
        self, graph: Any, inputs: tuple[GraphTensor | None, ...]
    ) -> tuple[tuple[Node, ...], tuple[tuple[GraphTensor, GraphTensor], ...], list[GraphTensor]]:
        """Read a Loop's body as a graph of its own whose inputs have the shapes of the first iteration.

        Returns its nodes, what is carried as (before, after) one iteration, and the Loop's outputs.
        """
        copy = onnx.GraphProto()
        copy.CopyFrom(graph)
        states = [tensor for tensor in inputs[2:] if tensor is not None]
        for value, tensor in zip(list(copy.input)[2:], states, strict=False):
            value.CopyFrom(_value_info(value.name, tensor))
        inside = {value.name for value in copy.input} | {tensor.name for tensor in copy.initializer}
        inside |= {name for node in copy.node for name in node.output}
        used = {name for node in copy.node for name in node.input if name} | {v.name for v in copy.output}
        for name in sorted(used - inside):
            outer = self._at(name)
            if outer.constant is not None:
                copy.initializer.append(onnx.numpy_helper.from_array(outer.constant, name))
            elif outer.dtype is not None:
                copy.input.append(_value_info(name, outer))
        model = onnx.helper.make_model(
            copy, opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        )
        model.ir_version = self.model.ir_version
        # An Identity between body and output would keep a declared shape alive: outputs are inferred anew.
        for value in copy.output:
            value.type.tensor_type.ClearField("shape")
        reader = _Reader(onnx.shape_inference.infer_shapes(model, data_prop=True), self.opsets)
        view = reader.view()
        results = [reader._at(value.name) for value in copy.output][1:]
        carried = tuple(zip(states, results, strict=False))
        trips = inputs[0].constant if inputs and inputs[0] is not None else None
        count = None if trips is None else int(trips)
        for i in range(len(states), len(results)):
            shape = results[i].shape
            results[i] = replace(results[i], shape=None if shape is None else (count, *shape))
        return view.nodes, carried, results


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _dtype(number: int) -> str | None:
    return None if number == 0 else str(_NAMES[number])


_NAMES = {
    number: {"float": "float32"}.get(name.lower(), name.lower())
    for name, number in onnx.TensorProto.DataType.items()
}


def _tensor(value: Any, *, is_input: bool = False, is_output: bool = False) -> GraphTensor:
    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return GraphTensor(value.name, _dtype(kind.elem_type), shape, is_input=is_input, is_output=is_output)


def _weight(tensor: Any, name: str | None = None) -> GraphTensor:
    inline = tensor.data_location != onnx.TensorProto.EXTERNAL
    return GraphTensor(
        name or tensor.name,
        _dtype(tensor.data_type),
        tuple(tensor.dims),
        stored=True,
        constant=np.asarray(onnx.numpy_helper.to_array(tensor)) if inline else None,
    )


def _value_info(name: str, tensor: GraphTensor) -> Any:
    kind = next(number for number, known in _NAMES.items() if known == tensor.dtype) if tensor.dtype else 0
    return onnx.helper.make_tensor_value_info(name, kind, tensor.shape)
