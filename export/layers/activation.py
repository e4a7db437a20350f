"""Activation functions in standard operators."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder


def _gelu(g: GraphBuilder, x: ir.Value, dtype: str) -> ir.Value:
    return g.op("Gelu", x)


def _gelu_tanh(g: GraphBuilder, x: ir.Value, dtype: str) -> ir.Value:
    return g.op("Gelu", x, approximate="tanh")


def _quick_gelu(g: GraphBuilder, x: ir.Value, dtype: str) -> ir.Value:
    return g.op("Mul", x, g.op("Sigmoid", g.op("Mul", x, g.constant(1.702, dtype))))


def _silu(g: GraphBuilder, x: ir.Value, dtype: str) -> ir.Value:
    return g.op("Mul", x, g.op("Sigmoid", x))


def _relu2(g: GraphBuilder, x: ir.Value, dtype: str) -> ir.Value:
    y = g.op("Relu", x)
    return g.op("Mul", y, y)


_WRITERS: dict[str, Callable[[GraphBuilder, ir.Value, str], ir.Value]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": _silu,
    "relu": lambda g, x, dtype: g.op("Relu", x),
    "relu2": _relu2,
    "sigmoid": lambda g, x, dtype: g.op("Sigmoid", x),
    "tanh": lambda g, x, dtype: g.op("Tanh", x),
    "linear": lambda g, x, dtype: x,
}


def activate(g: GraphBuilder, x: ir.Value, name: str, dtype: str) -> ir.Value:
    """Return the activation ``name`` (canonical, see ``models.activations``) of ``x``."""
    with g.scope("act"):
        return _WRITERS[name](g, x, dtype)
