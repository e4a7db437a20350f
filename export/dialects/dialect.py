"""The seam between the decoder's layers and the way its attention is written."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.weights import Weights
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.dialects import DialectFacts


class Attention(Protocol):
    """Writes one layer's attention: projected q, k, v [batch, seq, heads x head_dim] to the same for o_proj."""

    def __call__(
        self, g: GraphBuilder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value
    ) -> ir.Value:  # pragma: no cover - a protocol
        """Return the attention output and remember the layer's cache outputs."""
        ...


class Dialect(Protocol):
    """One way to write norms, rotary embedding, attention and KV cache. An instance serves one graph.

    ``facts`` is what everybody else knows of it.
    """

    facts: DialectFacts
    opset: int
    domains: tuple[str, ...]

    def __init__(self, capacity: int | None = None) -> None:
        """Begin a graph whose cache has ``capacity`` rows; None where it grows."""
        ...

    @staticmethod
    def check(spec: DecoderSpec, dtype: str) -> None:
        """Check that the dialect can write this decoder, whose activations are of type ``dtype``.

        Raises:
            UserError: it cannot; the sentence says which one can.
        """
        ...

    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, x: ir.Value, layers: range) -> Attention:
        """Declare the inputs of mask, positions and cache; return the writer of a layer's attention.

        ``x`` is [batch, seq, …], whatever it holds; the graph has the layers of these numbers.
        """
        ...

    def add_norm(
        self,
        g: GraphBuilder,
        x: ir.Value,
        branch: ir.Value | None,
        weights: Weights,
        name: str,
        eps: float,
    ) -> tuple[ir.Value, ir.Value]:
        """Return (RMSNorm(x + branch), x + branch); ``name`` is the norm's. No branch, nothing is added."""
        ...

    def turned(self, g: GraphBuilder, x: ir.Value, rows: ir.Value, heads: int) -> ir.Value:
        """Return heads [heads, rows, head_dim] of some rows of the first sequence, turned by their positions.

        ``x`` is [batch, seq, heads x head_dim] before the rotary embedding, ``rows`` int64 [rows] of the piece.
        """
        ...

    def keys(self, g: GraphBuilder, layer: int, rows: ir.Value, past: ir.Value) -> ir.Value:
        """Return keys [kv_heads, rows, head_dim] of the first sequence, turned, of a layer that was written.

        ``rows`` int64 [rows] are those of the cache; the first ``past`` int64 [1] of them were there before.
        """
        ...

    def finish(self, g: GraphBuilder, spec: DecoderSpec, dtype: str) -> None:
        """Declare the cache outputs, in layer order."""
        ...
