"""Normalisation layers."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.weights import Weights


def layer_norm(g: GraphBuilder, x: ir.Value, weights: Weights, name: str, eps: float) -> ir.Value:
    """Return LayerNorm over the last axis, statistics in float32."""
    with g.scope(name.rsplit(".", maxsplit=1)[-1]):
        scale, bias = weights.plain(g, f"{name}.weight"), weights.plain(g, f"{name}.bias")
        return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=eps, stash_type=1)


def rms_norm(g: GraphBuilder, x: ir.Value, weights: Weights, name: str, eps: float) -> ir.Value:
    """Return RMSNorm over the last axis, statistics in float32 (opset 23)."""
    with g.scope(name.rsplit(".", maxsplit=1)[-1]):
        scale = weights.plain(g, f"{name}.weight")
        return g.op("RMSNormalization", x, scale, axis=-1, epsilon=eps, stash_type=1)


def plain_rms_norm(g: GraphBuilder, x: ir.Value, weights: Weights, name: str, eps: float) -> ir.Value:
    """Return the same in plain operators (opset 18).

    ::

        x ─► float32 ─┬► square ─► mean ─► + eps ─► root ─┐
                      └──────────────────────────────────┴► Div ─► dtype ─► · weight ─►
    """
    with g.scope(name.rsplit(".", maxsplit=1)[-1]):
        half = weights.dtype != "float32"
        wide = g.cast(x, "float32") if half else x
        mean = g.op("ReduceMean", g.op("Mul", wide, wide), g.constant([-1]), keepdims=1)
        root = g.op("Sqrt", g.op("Add", mean, g.constant(eps, "float32")))
        normed = g.op("Div", wide, root)
        if half:
            normed = g.cast(normed, weights.dtype)
        return g.op("Mul", normed, weights.plain(g, f"{name}.weight"))


def add(g: GraphBuilder, x: ir.Value, branch: ir.Value | None, name: str) -> ir.Value:
    """Return the residual stream ``x + branch`` that the norm ``name`` reads; no branch, nothing is added."""
    if branch is None:
        return x
    with g.scope(name.rsplit(".", maxsplit=1)[-1]):
        return g.op("Add", x, branch)
