"""Rotary position embedding: the tables of a decoder, and the rotation in plain operators."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.graph import DTYPES, GraphBuilder
from divprune_edge.models.decoder import DecoderSpec


def rope_tables(g: GraphBuilder, spec: DecoderSpec, dtype: str) -> tuple[ir.Value, ir.Value]:
    """Add (cosine, sine), each [context, head_dim / 2], rounded to ``dtype`` once."""
    cosine, sine = (
        g.initializer(f"rope.{part}", ir.tensor(table.astype(DTYPES[dtype].numpy()), name=f"rope.{part}"))
        for part, table in zip(("cos", "sin"), spec.rope.tables(spec.head_dim, spec.context), strict=True)
    )
    return cosine, sine


class PlainRope:
    """Turns heads by the angles of their positions, which are looked up once for all layers.

    ::

        x ─► Split ─┬ a ─► a · cos - b · sin ─┐
                    └ b ─► b · cos + a · sin ─┴► Concat ─►
    """

    def __init__(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, positions: ir.Value) -> None:
        """Look up the angles of ``positions`` [batch, seq]."""
        self._half = spec.head_dim // 2
        with g.scope("rope"):
            self._cosine, self._sine = (
                g.op("Unsqueeze", g.op("Gather", table, positions, axis=0), g.constant([2]))
                for table in rope_tables(g, spec, dtype)
            )

    def __call__(self, g: GraphBuilder, x: ir.Value) -> ir.Value:
        """Return heads [batch, seq, heads, head_dim], turned."""
        with g.scope("rope"):
            a, b = g.ops("Split", x, g.constant([self._half, self._half]), outputs=2, axis=-1)
            first = g.op("Sub", g.op("Mul", a, self._cosine), g.op("Mul", b, self._sine))
            second = g.op("Add", g.op("Mul", b, self._cosine), g.op("Mul", a, self._sine))
            return g.op("Concat", first, second, axis=-1)
