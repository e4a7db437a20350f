"""Restrictions of TensorRT's ONNX parser that its list states in words, as far as our graphs can meet them.

Each rule takes a node and the table and yields one sentence per violation. What the list says of attributes and
outputs has the form of the checkers' tables (:mod:`divprune_edge.export.check.attributes`): it is said where those
leave it open. Facts from ``docs/operators.md`` of onnx/onnx-tensorrt (10.1 and 10.15), the changelog of
NVIDIA/TensorRT, and for int4 the parser's source of 10.1 and the page "Quantization Schemes" of TensorRT's
documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from divprune_edge.errors import either
from divprune_edge.export.check.attributes import Constraints
from divprune_edge.export.check.graph import GraphTensor, Node
from divprune_edge.export.check.tables import OperatorTable
from divprune_edge.export.precision import TENSORRT_BLOCK_SIZES

Rule = Callable[[Node, OperatorTable], Iterator[str]]

TOPK_LIMIT = 3840
# Operators whose axes (or axis) must be constants, the position of that input, and what lifts it.
_AXES = {
    "Slice": (3, "Slice axes"),
    "Pad": (3, "Pad axes"),
    "Squeeze": (1, "Squeeze axes"),
    "Unsqueeze": (1, "Unsqueeze axes"),
    "CumSum": (1, "CumSum axis"),
    **{
        f"Reduce{name}": (1, f"Reduce{name} axes")
        for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
}
_LISTED = {
    "Attention": Constraints(values={"softcap": (0,), "qk_matmul_output_mode": (0,)}, outputs=1),
    "LayerNormalization": Constraints(outputs=1),
    "ScatterND": Constraints(values={"reduction": ("none",)}),
    "TensorScatter": Constraints(values={"axis": (-2, 2), "mode": ("linear",)}),
    "TopK": Constraints(values={"sorted": (1,)}),
}


def listed_constraints(op: str) -> Constraints:
    """Return what the list says in words of an operator's attributes and outputs."""
    return _LISTED.get(op, Constraints())


def violations(node: Node, table: OperatorTable) -> Iterator[tuple[str, str]]:
    """Yield (rule, sentence) for each restriction that ``node`` violates."""
    if node.domain:
        return
    for name, rule in _RULES.items():
        for sentence in rule(node, table):
            yield name, sentence


def constant_axes(node: Node, table: OperatorTable) -> Iterator[str]:
    """Axes are constants in the file, unless a later version lifts that."""
    if node.op in _AXES:
        position, restriction = _AXES[node.op]
        axes = node.input(position)
        if axes is not None and not axes.stored and restriction not in table.lifts:
            yield f"{node.op} has axes that are computed; they must be a constant"


def top_k(node: Node, table: OperatorTable) -> Iterator[str]:
    """K is a constant below 3840."""
    if node.op != "TopK":
        return
    k = node.input(1)
    if k is not None and k.constant is None:
        yield "TopK has a K that is computed; it must be a constant, or shapes behind it are not static"
    elif k is not None and k.constant is not None and int(k.constant.reshape(-1)[0]) >= TOPK_LIMIT:
        yield f"TopK has K = {int(k.constant.reshape(-1)[0])}; it must be less than {TOPK_LIMIT}"


def uint8(node: Node, table: OperatorTable) -> Iterator[str]:
    """UINT8 is for the network's inputs and outputs alone."""
    for tensor in node.outputs:
        if tensor is not None and tensor.dtype == "uint8" and not tensor.is_output:
            yield f"{node.op} makes a uint8 value inside of the graph; uint8 is for inputs and outputs only"


def attention(node: Node, table: OperatorTable) -> Iterator[str]:
    """Q, K, V and the mask have four dimensions; no cache inputs."""
    if node.op != "Attention":
        return
    for position, name in enumerate(("Q", "K", "V", "attn_mask")):
        tensor = node.input(position)
        if tensor is not None and tensor.rank not in (None, 4):
            yield f"Attention's {name} has {tensor.rank} dimensions; it must have 4"
    for position, name in ((4, "past_key"), (5, "past_value"), (6, "nonpad_kv_seqlen")):
        if node.input(position) is not None:
            yield f"Attention's input {name} is not taken"


def tensor_scatter(node: Node, table: OperatorTable) -> Iterator[str]:
    """Four dimensions; the cache is an input of static size and the result an output."""
    if node.op != "TensorScatter":
        return
    for position, name in ((0, "past_cache"), (1, "update")):
        tensor = node.input(position)
        if tensor is not None and tensor.rank not in (None, 4):
            yield f"TensorScatter's {name} has {tensor.rank} dimensions; it must have 4"
    cache = node.input(0)
    if cache is not None and (not cache.is_input or (cache.shape is not None and cache.shape[-2] is None)):
        yield "TensorScatter's cache must be an input of the graph with a size that is known"
    if node.outputs and node.outputs[0] is not None and not node.outputs[0].is_output:
        yield "TensorScatter's result must be an output of the graph, to share the cache's memory"


def dequantize(node: Node, table: OperatorTable) -> Iterator[str]:
    """Symmetric; one scale per block for int4 only, 64 or 128 values along one axis, an even last dimension."""
    if node.op != "DequantizeLinear":
        return
    data, scale, zero = (node.input(i) for i in range(3))
    if zero is not None and (zero.constant is None or np.any(zero.constant.astype(np.float32) != 0)):
        yield "DequantizeLinear has a zero point; it must be left out or zero"
    if data is None or scale is None or data.shape is None or scale.shape is None:
        return
    blocked = bool(node.attributes.get("block_size")) or (
        len(scale.shape) == len(data.shape) > 1 and scale.shape != data.shape
    )
    if blocked and data.dtype != "int4":
        yield f"DequantizeLinear has a scale per block of {data.dtype}; blocks are for int4 only"
    size = node.attributes.get("block_size")
    if blocked and data.dtype == "int4" and size is not None and size not in TENSORRT_BLOCK_SIZES:
        sizes = either(map(str, TENSORRT_BLOCK_SIZES))
        yield f"DequantizeLinear has int4 in blocks of {size}; TensorRT takes {sizes} (export with --block-size)"
    if blocked and len(scale.shape) == len(data.shape):
        differ = sum(a != b for a, b in zip(data.shape, scale.shape, strict=True))
        if differ > 1:
            yield "DequantizeLinear has blocks along several axes; one axis may be divided"
    if data.dtype == "int4" and data.shape and data.shape[-1] is not None and data.shape[-1] % 2:
        yield f"DequantizeLinear has int4 values with a last dimension of {data.shape[-1]}; it must be even"


def loop(node: Node, table: OperatorTable) -> Iterator[str]:
    """The number of trips is a constant, carried shapes stay."""
    if node.op != "Loop":
        return
    trips = node.input(0)
    stacks = len(node.outputs) > len(node.carried)
    if (trips is None or trips.constant is None) and stacks:
        yield "Loop stacks results over a number of trips that is computed; it must be a constant"
    for before, after in node.carried:
        if before.shape is None or after.shape is None:
            yield "Loop carries a value whose shape cannot be inferred; it must be the same in all iterations"
        elif not _same(before, after):
            yield f"Loop carries a value of shape {_show(before)} into {_show(after)}; it must stay the same"


_RULES: dict[str, Rule] = {
    "constant axes": constant_axes,
    "TopK": top_k,
    "uint8": uint8,
    "Attention": attention,
    "TensorScatter": tensor_scatter,
    "DequantizeLinear": dequantize,
    "Loop": loop,
}


def _same(before: GraphTensor, after: GraphTensor) -> bool:
    """Whether two shapes agree as far as they are known."""
    a, b = before.shape or (), after.shape or ()
    return len(a) == len(b) and all(x == y or x is None or y is None for x, y in zip(a, b, strict=True))


def _show(tensor: GraphTensor) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in tensor.shape or ()) + "]"
