"""A small ONNX model, written here byte by byte: what copies and clears on the device that ONNX Runtime computes on.

The runtime has no onnx package. A model is a few messages of protocol buffers; the field numbers are those of ONNX's
``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Sequence

_IR_VERSION, _OPSET = 8, 18
_TYPES = {"float32": 1, "float16": 10, "int64": 7, "bool": 9, "uint8": 2, "int32": 6, "int8": 3}
_INT = 2
"""``AttributeProto.INT``."""

Tensor = tuple[str, str, int]
"""Name, element type and number of dimensions, all of which vary."""
Node = tuple[str, Sequence[str], str, dict[str, int]]
"""Operator, inputs, output, and attributes that are integers."""


def model(inputs: Sequence[Tensor], nodes: Sequence[Node], output: Tensor) -> bytes:
    """Return a model of nodes with one output each, in their order; the last one's is the model's."""
    graph = b"".join(
        [
            *(_bytes(1, _node(node)) for node in nodes),
            _bytes(2, b"graph"),
            *(_bytes(11, _tensor(one)) for one in inputs),
            _bytes(12, _tensor(output)),
        ]
    )
    return _number(1, _IR_VERSION) + _bytes(8, _bytes(1, b"") + _number(2, _OPSET)) + _bytes(7, graph)


def copies(dtype: str) -> bytes:
    """Return the model that copies columns of ``source`` [n, columns, width] and puts zeros before and behind them.

    ::

        source ─► Gather(columns int64 [m]) ─► Pad(pads int64 [6]) ─► target [n, before + m + behind, width]
    """
    return model(
        [("source", dtype, 3), ("columns", "int64", 1), ("pads", "int64", 1)],
        [("Gather", ("source", "columns"), "taken", {"axis": 1}), ("Pad", ("taken", "pads"), "target", {})],
        ("target", dtype, 3),
    )


def _node(node: Node) -> bytes:
    operator, inputs, output, attributes = node
    return b"".join(
        [
            *(_bytes(1, name.encode()) for name in inputs),
            _bytes(2, output.encode()),
            _bytes(3, operator.encode()),
            _bytes(4, operator.encode()),
            *(
                _bytes(5, _bytes(1, name.encode()) + _number(3, value) + _number(20, _INT))
                for name, value in attributes.items()
            ),
        ]
    )


def _tensor(tensor: Tensor) -> bytes:
    name, dtype, rank = tensor
    shape = b"".join(_bytes(1, _bytes(2, f"{name}_{axis}".encode())) for axis in range(rank))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, _TYPES[dtype]) + _bytes(2, shape)))


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
