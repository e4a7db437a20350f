"""Dialect ``portable``: the standard ``Attention`` operator with a growing KV cache (ONNX opset 23).

Inputs beyond ids and visual tokens: ``attention_mask`` bool [batch, total] (True = attend; ragged batches are
padded on the left), ``position_ids`` int64 [batch, seq], and per layer ``past_key_values.{i}.key`` and
``.value`` [batch, kv_heads, past, head_dim]. Outputs: ``present.{i}.key`` and ``.value`` with
total = past + seq rows.
"""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.dialects.cache import cache_inputs
from divprune_edge.export.dialects.dialect import Attention, Dialect
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.rope import SomeRows, first_sequence, positions_input, rotary
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.dialects import DIALECTS


class Portable(Dialect):
    """See the module's text."""

    facts = DIALECTS["portable"]
    opset = 23
    cache_rows = "total"

    @staticmethod
    def check(spec: DecoderSpec, dtype: str) -> None:
        """Every decoder will do."""

    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, x: ir.Value, layers: range) -> Attention:
        """Declare mask, positions and past; write what all layers share."""
        mask = g.input("attention_mask", "bool", ["batch", "total"])
        positions = positions_input(g, spec)
        past = cache_inputs(g, spec, dtype, "past", layers)
        with g.scope("mask"):
            allowed: dict[int | None, ir.Value] = {None: _allowed(g, x, mask)}
            for window in sorted({spec.window(i) or 0 for i in layers} - {0}):
                with g.scope(f"window_{window}"):
                    allowed[window] = g.op("And", allowed[None], _near(g, x, mask, window))
        rope = rotary(g, spec, dtype, positions)
        self.some_rows = SomeRows(spec, dtype, lambda: first_sequence(g, spec, positions))

        def attention(g: GraphBuilder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
            q = g.op("RotaryEmbedding", q, *rope, num_heads=spec.heads)
            k = g.op("RotaryEmbedding", k, *rope, num_heads=spec.kv_heads)
            y, key, value = g.ops(
                "Attention",
                q,
                k,
                v,
                allowed[spec.window(layer)],
                *past[layer],
                outputs=3,
                q_num_heads=spec.heads,
                kv_num_heads=spec.kv_heads,
            )
            self.present[layer] = key, value
            return y

        return attention


def _allowed(g: GraphBuilder, x: ir.Value, mask: ir.Value) -> ir.Value:
    """Return bool [batch, 1, seq, total]: key j may be seen by query i.

    ::

        (j <= past + i  and  mask[j])  or  j == past + i

    A padding row sees itself: a softmax over nothing would be NaN, and NaN spreads through the cache.
    """
    seq, total = (g.op("Shape", value, start=1, end=2) for value in (x, mask))
    end, one = g.op("Squeeze", total), g.constant(1)
    keys = g.op("Range", g.constant(0), end, one)
    # Counted from there on, not shifted by it: numbers of the host are no operands on a GPU.
    queries = g.op("Range", g.op("Squeeze", g.op("Sub", total, seq)), end, one)
    queries = g.op("Unsqueeze", queries, g.constant([1]))
    visible = g.op("Unsqueeze", mask, g.constant([1, 2]))
    seen = g.op("And", g.op("LessOrEqual", keys, queries), visible)
    return g.op("Or", seen, g.op("Equal", keys, queries))


def _near(g: GraphBuilder, x: ir.Value, mask: ir.Value, window: int) -> ir.Value:
    """Return bool [batch, 1, seq, total]: key j is among the last ``window`` real ones up to query i.

    ::

        mask ─► CumSum ─► count of real keys ─┬─► of the queries - window ─┐
                                              └────────────────────────────┴► Greater ─►
    """
    counts = g.op("CumSum", g.cast(mask, "int64"), g.constant(1))
    seq, total = (g.op("Shape", value, start=1, end=2) for value in (x, mask))
    queries = g.op("Slice", counts, g.op("Sub", total, seq), total, g.constant([1]))
    first = g.op("Sub", g.op("Unsqueeze", queries, g.constant([1, 3])), g.constant(window))
    return g.op("Greater", g.op("Unsqueeze", counts, g.constant([1, 2])), first)
