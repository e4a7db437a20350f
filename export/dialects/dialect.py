"""The interface between the decoder's layers and the way its attention is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import onnx_ir as ir

from divprune_edge.export.dialects.cache import Cache, cache_outputs, first_rows
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.norm import add, rms_norm
from divprune_edge.export.layers.rope import SomeRows
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


class Dialect(ABC):
    """One way to write norms, rotary embedding, attention and KV cache. An instance serves one graph.

    ``facts`` is what everybody else knows of it, ``cache_rows`` the rows of the cache that the graph returns. Where no
    dialect says otherwise, norms are an operator, and attention leaves the whole cache of its layer in ``present``.
    """

    facts: ClassVar[DialectFacts]
    opset: ClassVar[int]
    domains: ClassVar[tuple[str, ...]] = ()
    cache_rows: int | str
    some_rows: SomeRows
    """Turns what :meth:`turned` is asked for; :meth:`begin` sets it."""

    def __init__(self, capacity: int | None = None) -> None:
        """Begin a graph whose cache has ``capacity`` rows; None where it grows."""
        self.present: Cache = {}

    @staticmethod
    @abstractmethod
    def check(spec: DecoderSpec, dtype: str) -> None:
        """Check that the dialect can write this decoder, whose activations are of type ``dtype``.

        Raises:
            UserError: it cannot; the sentence says which one can.
        """

    @abstractmethod
    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, x: ir.Value, layers: range) -> Attention:
        """Declare the inputs of mask, positions and cache; return the writer of a layer's attention.

        ``x`` is [batch, seq, …], whatever it holds; the graph has the layers of these numbers.
        """

    def norm(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, eps: float) -> ir.Value:
        """Return RMSNorm(x)."""
        return rms_norm(g, x, weights, name, eps)

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
        total = add(g, x, branch, name)
        return self.norm(g, total, weights, name, eps), total

    def turned(self, g: GraphBuilder, x: ir.Value, rows: ir.Value, heads: int) -> ir.Value:
        """Return heads [heads, rows, head_dim] of some rows of the first sequence, turned by their positions.

        ``x`` is [batch, seq, heads x head_dim] before the rotary embedding, ``rows`` int64 [rows] of the piece.
        """
        return self.some_rows(g, x, rows, heads)

    def keys(self, g: GraphBuilder, layer: int, rows: ir.Value, past: ir.Value) -> ir.Value:
        """Return keys [kv_heads, rows, head_dim] of the first sequence, turned, of a layer that was written.

        ``rows`` int64 [rows] are those of the cache; the first ``past`` int64 [1] of them were there before.
        """
        return first_rows(g, self.present[layer][0], rows)

    def finish(self, g: GraphBuilder, spec: DecoderSpec, dtype: str) -> None:
        """Declare the cache outputs, in layer order."""
        cache_outputs(g, self.present, "present", spec, dtype, self.cache_rows)
