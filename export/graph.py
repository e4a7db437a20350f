"""A small builder over onnx_ir: values in, values out, and every node named after its module path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from divprune_edge.version import __version__

ONNX_RUNTIME = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
IR_VERSION = 10
"""The oldest with int4, which old runtimes read."""
_IR_VERSIONS = {24: 12}
"""Opset -> the IR version that came with it, where :data:`IR_VERSION` is too old for it."""
DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "int8": ir.DataType.INT8,
    "int4": ir.DataType.INT4,
    "uint8": ir.DataType.UINT8,
    "bool": ir.DataType.BOOL,
}
"""Type names of the manifest -> ONNX."""


class GraphBuilder:
    """Builds one graph (or the body of a loop or function) in topological order.

    Node names are ``/scope/…/OpType``, made unique by a counter; a value is named after its node. Constants
    are inline initializers, shared when equal.
    """

    def __init__(self, name: str, *, parent: GraphBuilder | None = None, prefix: str = "") -> None:
        self.name = name
        self._scopes: list[str] = [prefix] if prefix else []
        self._names: Counter[str] = parent._names if parent else Counter()
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._weights: dict[str, ir.Value] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put everything built inside under ``name`` in the module path."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> ir.Value:
        """Declare a graph input; a string is a symbolic dimension."""
        value = ir.Value(name=name, type=ir.TensorType(DTYPES[dtype]), shape=ir.Shape(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare ``value`` as the graph output ``name``."""
        if value.producer() is None or value in self._outputs:
            value = self.op("Identity", value)
        value.name, value.type, value.shape = name, ir.TensorType(DTYPES[dtype]), ir.Shape(shape)
        self._outputs.append(value)

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Add a weight under its own name."""
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        self._weights[name] = value
        return value

    def find_initializer(self, name: str) -> ir.Value | None:
        """Return the weight added under ``name``, if there is one."""
        return self._weights.get(name)

    def constant(self, value: Any, dtype: str = "int64") -> ir.Value:
        """Return a small constant; equal ones are shared within this graph."""
        array = np.asarray(value, dtype=DTYPES[dtype].numpy())
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._make_constant(array)
        return self._constants[key]

    def _make_constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        name = self._unique("/".join(["", *self._scopes, "const"]))
        return self.initializer(name, ir.tensor(array, name=name))

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output and return that output."""
        return self.ops(op_type, *inputs, domain=domain, outputs=1, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any
    ) -> list[ir.Value]:
        """Add a node with several outputs and return them."""
        name = self._unique("/".join(["", *self._scopes, op_type]))
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_output_{i}"
        self._nodes.append(node)
        return list(node.outputs)

    def cast(self, value: ir.Value, dtype: str) -> ir.Value:
        """Convert the element type."""
        return self.op("Cast", value, to=int(DTYPES[dtype]))

    def loop(
        self,
        trips: int,
        carried: Sequence[ir.Value],
        body: Callable[[GraphBuilder, Sequence[ir.Value]], tuple[Sequence[ir.Value], Sequence[ir.Value]]],
    ) -> tuple[list[ir.Value], list[ir.Value]]:
        """Add a Loop with a constant trip count; see :class:`divprune_edge.models.selectors.selector.Ops`."""
        inner = GraphBuilder("body", parent=self, prefix="/".join([*self._scopes, "Loop"]))
        iteration, going = (ir.Value(name=self._unique(n)) for n in ("iteration", "going"))
        iteration.type, iteration.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([])
        going.type, going.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
        states = [ir.Value(name=self._unique("carried")) for _ in carried]
        inner._inputs = [iteration, going, *states]
        following, stacked = body(inner, states)
        # The trip count alone ends the loop: of a condition beside it, TensorRT would make a second limit. The body has
        # to give one all the same, and may not read the one that nobody hands in.
        inner._outputs = [inner.op("Identity", self.constant(True, "bool")), *following, *stacked]
        results = self.ops(
            "Loop",
            self.constant(trips),
            None,
            *carried,
            outputs=len(following) + len(stacked),
            body=inner.graph({}),
        )
        return results[: len(following)], results[len(following) :]

    def graph(self, opsets: dict[str, int]) -> ir.Graph:
        """Return what was built; a subgraph or function body has no opsets of its own."""
        return ir.Graph(
            self._inputs,
            self._outputs,
            nodes=self._nodes,
            initializers=list(self._weights.values()),
            name=self.name,
            opset_imports=opsets,
        )

    def model(
        self, opset: int, *, functions: Sequence[ir.Function] = (), domains: Sequence[str] = ()
    ) -> ir.Model:
        """Return the finished model."""
        return ir.Model(
            self.graph({"": opset} | dict.fromkeys(domains, 1)),
            ir_version=_IR_VERSIONS.get(opset, IR_VERSION),
            producer_name="divprune-edge",
            producer_version=__version__,
            functions=functions,
        )

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        seen = self._names[name]
        return name if seen == 1 else f"{name}_{seen - 1}"


class FunctionBuilder(GraphBuilder):
    """Builds the body of a model-local function: constants are nodes, for a function has no initializers."""

    def _make_constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        return self.op("Constant", value=ir.tensor(array))

    def declare(self, name: str) -> ir.Value:
        """Declare a function input; its type and shape are the caller's."""
        value = ir.Value(name=name)
        self._inputs.append(value)
        return value

    def deliver(self, value: ir.Value, name: str) -> None:
        """Declare ``value`` as the function output ``name``."""
        value.name = name
        self._outputs.append(value)

    def function(self, domain: str, opset: int, attributes: Sequence[ir.Attr] = ()) -> ir.Function:
        """Return the function ``domain::name``."""
        return ir.Function(domain, self.name, graph=self.graph({"": opset}), attributes=attributes)
