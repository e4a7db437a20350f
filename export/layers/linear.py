"""Linear layers: a matrix in the graph's format, and a bias where the checkpoint has one."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.weights import Weights


def linear(g: GraphBuilder, x: ir.Value, weights: Weights, name: str, *, gated: bool = False) -> ir.Value:
    """Return ``x [..., in] @ W^T (+ b)`` for the layer ``name``; it has a bias where the checkpoint has one.

    ``gated`` is a hint about x; see :meth:`divprune_edge.export.weights.Format.linear`.
    """
    with g.scope(name.rsplit(".", maxsplit=1)[-1]):
        y = weights.format.linear(g, x, weights, f"{name}.weight", gated=gated)
        if f"{name}.bias" in weights:
            y = g.op("Add", y, weights.plain(g, f"{name}.bias"))
        return y


def output_head(g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
    """Return logits [batch, vocabulary] of hidden states [batch, hidden]."""
    with g.scope("lm_head"):
        return weights.format.head(g, x, weights, name)
