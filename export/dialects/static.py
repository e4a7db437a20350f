"""Dialect ``static``: a KV cache of fixed capacity that the graph itself writes into (ONNX opset 24).

For TensorRT from 10.15, whose ``Attention`` takes neither past nor lengths, only four dimensions and a mask, and
which makes of ``TensorScatter`` an update in place. ONNX Runtime runs the same file.

Inputs beyond ids and visual tokens: ``attention_mask`` bool [batch, 1, seq, capacity] (True = attend),
``position_ids`` int64 [batch, seq], ``write_indices`` int64 [batch] (the row of each sequence's first new id), and
per layer ``past_key_values.{i}.key`` and ``.value`` [batch, kv_heads, capacity, head_dim]. Outputs:
``present.{i}.key`` and ``.value`` of the same shape; bound to the inputs' own memory, nothing is copied. Rows that
the mask hides must be finite numbers. Ragged batches are padded on the right.
"""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.dialects.cache import (
    cache_inputs,
    check_windows,
    heads_first,
    merge_heads,
    split_heads,
)
from divprune_edge.export.dialects.dialect import Attention, Dialect
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.rope import SomeRows, first_sequence, positions_input, rotary
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.dialects import DIALECTS


class Static(Dialect):
    """See the module's text."""

    facts = DIALECTS["static"]
    opset = 24

    def __init__(self, capacity: int | None = None) -> None:
        assert capacity is not None, "the cache's size is part of the graph"
        super().__init__(capacity)
        self.cache_rows = self._capacity = capacity

    @staticmethod
    def check(spec: DecoderSpec, dtype: str) -> None:
        """TensorRT has no 16-bit kernel for heads of other sizes, whole or split."""
        check_windows(spec, "static")
        if dtype != "float32" and spec.head_dim % 8:
            raise UserError(
                f"Dialect 'static' in {dtype} needs heads whose size is a multiple of 8, but head_dim is "
                f"{spec.head_dim}: use --dialect decomposed.",
                code="dialect-head-size",
            )

    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, x: ir.Value, layers: range) -> Attention:
        """Declare mask, positions, rows to write and past."""
        mask = g.input("attention_mask", "bool", ["batch", 1, "seq", self._capacity])
        positions = positions_input(g, spec)
        rows = g.input("write_indices", "int64", ["batch"])
        past = cache_inputs(g, spec, dtype, self._capacity, layers)
        rope = rotary(g, spec, dtype, positions)
        self.some_rows = SomeRows(spec, dtype, lambda: first_sequence(g, spec, positions))

        def heads(g: GraphBuilder, x: ir.Value, count: int) -> ir.Value:
            return heads_first(g, split_heads(g, x, count, spec.head_dim))

        def attention(g: GraphBuilder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
            """Write the new rows, then attend to all that the mask shows.

            ::

                k ─► heads ─► rotary ─► TensorScatter(past key, rows) ───┐
                q ─► heads ─► rotary ────────────────────────────────────┼► Attention(mask) ─► merge heads ─►
                v ─► heads ───────────► TensorScatter(past value, rows) ─┘
            """
            q = g.op("RotaryEmbedding", heads(g, q, spec.heads), *rope)
            k = g.op("RotaryEmbedding", heads(g, k, spec.kv_heads), *rope)
            v = heads(g, v, spec.kv_heads)
            key, value = (
                g.op("TensorScatter", cache, new, rows, axis=-2, mode="linear")
                for cache, new in zip(past[layer], (k, v), strict=True)
            )
            self.present[layer] = key, value
            # No softmax_precision: TensorRT's parser refuses the node for it, and ONNX Runtime does not heed it.
            y = g.op("Attention", q, key, value, mask)
            return merge_heads(g, y, spec.heads * spec.head_dim)

        return attention
