"""Linear layers: the one place that decides how a weight matrix is stored and multiplied."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.weights import Weights


def linear(g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
    """Return ``x [..., in] @ W^T (+ b)`` for the layer ``name``; it has a bias where the checkpoint has one.

    ::

        x ─► MatMul(W^T [in, out]) ─► (Add b) ─►
    """
    with g.scope(name.rsplit(".", maxsplit=1)[-1]):
        y = g.op("MatMul", x, weights.transposed(g, f"{name}.weight"))
        if f"{name}.bias" in weights:
            y = g.op("Add", y, weights.plain(g, f"{name}.bias"))
        return y


def output_head(g: GraphBuilder, x: ir.Value, weights: Weights, name: str) -> ir.Value:
    """Return logits [batch, vocabulary] of hidden states [batch, hidden].

    The weight stays [vocabulary, hidden] as stored, so that a tied head and the embedding are one initializer.
    """
    with g.scope("lm_head"):
        return g.op("Gemm", x, weights.plain(g, name), transB=1)
