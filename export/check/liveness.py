"""How much is alive at once in a graph: an estimate of the activations, from its shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from divprune_edge.export.check.graph import GraphTensor, GraphView

_BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int64": 64,
    "int32": 32,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int4": 4,
}
# Operators that TensorRT writes no memory for, or that it folds into what is before or behind them.
_FREE = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant", "Flatten", "DequantizeLinear"}
)


@dataclass(frozen=True)
class Activations:
    """Bytes alive at the widest point, the node where that is, and how many values had no known size."""

    peak: int
    node: str
    unknown: int


def size_of(tensor: GraphTensor) -> int | None:
    """Return the bytes of a value, None where its shape or type is not known."""
    if tensor.shape is None or tensor.dtype not in _BITS or None in tensor.shape:
        return None
    return -(-math.prod(d for d in tensor.shape if d is not None) * _BITS[tensor.dtype] // 8)


def live_activations(view: GraphView) -> Activations:
    """Walk the nodes in order: a value lives from where it is made to where it is last read.

    Inputs and outputs of the graph are not counted (their buffers are the runtime's), nor weights. Every node but
    those that only rename writes a new value: TensorRT fuses many of them, so this is more than it needs, while the
    scratch memory of its kernels is not in it. Loops' bodies count once.
    """
    last: dict[str, int] = {}
    source: dict[str, str] = {}
    for position, node in enumerate(view.nodes):
        if node.op in _FREE and node.inputs and node.inputs[0] is not None and node.outputs[0] is not None:
            first = node.inputs[0].name
            source[node.outputs[0].name] = source.get(first, first)
        for tensor in node.inputs:
            if tensor is not None:
                last[source.get(tensor.name, tensor.name)] = position
    alive: dict[str, int] = {}
    now = peak = unknown = 0
    widest = ""
    for position, node in enumerate(view.nodes):
        inside = 0
        for inner in [n for n in node.everything() if n is not node]:
            inside += sum(size_of(t) or 0 for t in inner.outputs if t is not None)
        for tensor in node.outputs:
            if tensor is None or tensor.is_output or tensor.name in source:
                continue
            size = size_of(tensor)
            unknown += size is None
            if tensor.name in last:
                alive[tensor.name] = size or 0
                now += size or 0
        if now + inside > peak:
            peak, widest = now + inside, node.name
        for name in [name for name in alive if last[name] == position]:
            now -= alive.pop(name)
    return Activations(peak, widest, unknown)
