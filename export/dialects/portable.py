"""Dialect ``portable``: the standard ``Attention`` operator with a growing KV cache (ONNX opset 23).

Inputs beyond ids and visual tokens: ``attention_mask`` bool [batch, total] (True = attend; ragged batches are
padded on the left), ``position_ids`` int64 [batch, seq], and per layer ``past_key_values.{i}.key`` and
``.value`` [batch, kv_heads, past, head_dim]. Outputs: ``present.{i}.key`` and ``.value`` with
total = past + seq rows.
"""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.dialects.base import Attention
from divprune_edge.export.graph import DTYPES, GraphBuilder
from divprune_edge.export.layers.norm import rms_norm
from divprune_edge.export.weights import Weights
from divprune_edge.models.decoder import DecoderSpec


class Portable:
    """See the module's text."""

    name = "portable"
    opset = 23
    domains: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._present: list[ir.Value] = []

    @staticmethod
    def check(spec: DecoderSpec) -> None:
        """Every decoder will do."""

    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, ids: ir.Value) -> Attention:
        """Declare mask, positions and past; write what all layers share."""
        mask = g.input("attention_mask", "bool", ["batch", "total"])
        positions = g.input("position_ids", "int64", ["batch", "seq"])
        past = [
            g.input(f"past_key_values.{i}.{part}", dtype, ["batch", spec.kv_heads, "past", spec.head_dim])
            for i in range(spec.layers)
            for part in ("key", "value")
        ]
        with g.scope("mask"):
            allowed = _allowed(g, ids, mask)
        cosine, sine = (
            g.initializer(f"rope.{part}", ir.tensor(table.astype(DTYPES[dtype].numpy()), name=f"rope.{part}"))
            for part, table in zip(("cos", "sin"), spec.rope.tables(spec.head_dim, spec.context), strict=True)
        )

        def attention(g: GraphBuilder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
            q = g.op("RotaryEmbedding", q, cosine, sine, positions, num_heads=spec.heads)
            k = g.op("RotaryEmbedding", k, cosine, sine, positions, num_heads=spec.kv_heads)
            y, key, value = g.ops(
                "Attention",
                q,
                k,
                v,
                allowed,
                past[2 * layer],
                past[2 * layer + 1],
                outputs=3,
                q_num_heads=spec.heads,
                kv_num_heads=spec.kv_heads,
            )
            self._present += [key, value]
            return y

        return attention

    def add_norm(
        self, g: GraphBuilder, x: ir.Value, y: ir.Value, weights: Weights, name: str, eps: float
    ) -> tuple[ir.Value, ir.Value]:
        """Add, then normalise."""
        with g.scope(name.rsplit(".", maxsplit=1)[-1]):
            total = g.op("Add", x, y)
        return rms_norm(g, total, weights, name, eps), total

    def finish(self, g: GraphBuilder, spec: DecoderSpec, dtype: str) -> None:
        """Declare the grown cache."""
        for i, value in enumerate(self._present):
            name = f"present.{i // 2}.{'value' if i % 2 else 'key'}"
            g.output(value, name, dtype, ["batch", spec.kv_heads, "total", spec.head_dim])


def _allowed(g: GraphBuilder, ids: ir.Value, mask: ir.Value) -> ir.Value:
    """Return bool [batch, 1, seq, total]: key j may be seen by query i.

    ::

        (j <= past + i  and  mask[j])  or  j == past + i

    A padding row sees itself: a softmax over nothing would be NaN, and NaN spreads through the cache.
    """
    seq, total = (g.op("Shape", value, start=1, end=2) for value in (ids, mask))
    past = g.op("Sub", total, seq)
    zero, one = g.constant(0), g.constant(1)
    keys = g.op("Range", zero, g.op("Squeeze", total), one)
    queries = g.op("Add", g.op("Range", zero, g.op("Squeeze", seq), one), past)
    queries = g.op("Unsqueeze", queries, g.constant([1]))
    visible = g.op("Unsqueeze", mask, g.constant([1, 2]))
    seen = g.op("And", g.op("LessOrEqual", keys, queries), visible)
    return g.op("Or", seen, g.op("Equal", keys, queries))
