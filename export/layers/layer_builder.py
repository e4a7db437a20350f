"""The layers of one part of a checkpoint, for encoders that models write."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from divprune_edge.export.graph import ONNX_RUNTIME, GraphBuilder
from divprune_edge.export.layers.activation import activate
from divprune_edge.export.layers.linear import linear
from divprune_edge.export.layers.norm import layer_norm, plain_rms_norm
from divprune_edge.export.weights import Weights


@dataclass(frozen=True)
class LayerBuilder:
    """See :class:`divprune_edge.models.graph.Layers`."""

    graph: GraphBuilder
    weights: Weights
    fuses_attention: bool = False

    @property
    def dtype(self) -> str:
        """Element type of activations."""
        return self.weights.dtype

    def weight(self, name: str) -> ir.Value:
        """Return a weight as it is stored, in the graph's type."""
        return self.weights.plain(self.graph, name)

    def linear(self, x: ir.Value, name: str, *, gated: bool = False) -> ir.Value:
        """See :func:`divprune_edge.export.layers.linear.linear`."""
        return linear(self.graph, x, self.weights, name, gated=gated)

    def layer_norm(self, x: ir.Value, name: str, eps: float) -> ir.Value:
        """See :func:`divprune_edge.export.layers.norm.layer_norm`."""
        return layer_norm(self.graph, x, self.weights, name, eps)

    def rms_norm(self, x: ir.Value, name: str, eps: float) -> ir.Value:
        """See :func:`divprune_edge.export.layers.norm.plain_rms_norm`: encoders stay within opset 20."""
        return plain_rms_norm(self.graph, x, self.weights, name, eps)

    def activation(self, x: ir.Value, name: str) -> ir.Value:
        """See :func:`divprune_edge.export.layers.activation.activate`."""
        return activate(self.graph, x, name, self.weights.dtype)

    def attention(
        self, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, bias: ir.Value | None = None
    ) -> ir.Value:
        """See :class:`divprune_edge.models.graph.Layers`; ONNX Runtime's own operator."""
        beside = () if bias is None else (None, None, bias)
        return self.graph.op("MultiHeadAttention", q, k, v, *beside, domain=ONNX_RUNTIME, num_heads=heads)
