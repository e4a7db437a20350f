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
