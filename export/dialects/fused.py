"""Dialect ``onnxruntime``: ONNX Runtime's own fused operators, and a KV cache that is updated in place.

Inputs beyond ids and visual tokens: ``seqlens_k`` int32 [batch] (positions of each sequence, new ones included,
less one), ``total_sequence_length`` int32 [] (the largest of them plus one), and per layer
``past_key_values.{i}.key`` and ``.value`` [batch, kv_heads, capacity, head_dim], of which only the rows before
the new ones are read. Outputs: ``present.{i}.key`` and ``.value`` of the same shape; bound to the inputs' own
memory, nothing is copied. Ragged batches are padded on the right.

Where a token has three positions, ``position_ids`` int64 [3, batch, seq] is one more input.

The operator refuses several new ids per sequence on a cache that is not empty where the batch has more than one
sequence: a batch is prefilled in one piece.
"""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.dialects.cache import cache_inputs
from divprune_edge.export.dialects.dialect import Attention, Dialect
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.rope import SomeRows, first_sequence, positions_input, rope_tables, rotary
from divprune_edge.export.weights import Weights
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.dialects import DIALECTS

DOMAIN = "com.microsoft"


class OnnxRuntime(Dialect):
    """See the module's text."""

    facts = DIALECTS["onnxruntime"]
    opset = 23
    domains = (DOMAIN,)
    cache_rows = "capacity"

    @staticmethod
    def check(spec: DecoderSpec, dtype: str) -> None:
        """GroupQueryAttention that rotates, as it does here, wants heads of a multiple of sixteen."""
        if spec.head_dim % 16:
            raise UserError(
                f"Dialect 'onnxruntime' needs heads whose size is a multiple of 16, but head_dim is {spec.head_dim}: "
                "use --dialect portable.",
                code="dialect-head-size",
            )

    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, x: ir.Value, layers: range) -> Attention:
        """Declare lengths and past."""
        lengths = g.input("seqlens_k", "int32", ["batch"])
        total = g.input("total_sequence_length", "int32", [])
        past = cache_inputs(g, spec, dtype, "capacity", layers)
        # The operator turns by the rows that it fills; a token with three positions is turned before it.
        turns = spec.rope.axes == 1
        if turns:
            rope: tuple[ir.Value, ...] = rope_tables(g, spec, dtype)
            self.some_rows = SomeRows(spec, dtype, lambda: _filled(g, x, total))
        else:
            positions = positions_input(g, spec)
            rope = rotary(g, spec, dtype, positions)
            self.some_rows = SomeRows(spec, dtype, lambda: first_sequence(g, spec, positions))

        def attention(g: GraphBuilder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
            window = spec.window(layer)
            if not turns:
                q = g.op("RotaryEmbedding", q, *rope, num_heads=spec.heads)
                k = g.op("RotaryEmbedding", k, *rope, num_heads=spec.kv_heads)
            y, key, value = g.ops(
                "GroupQueryAttention",
                q,
                k,
                v,
                *past[layer],
                lengths,
                total,
                *(rope if turns else ()),
                domain=DOMAIN,
                outputs=3,
                num_heads=spec.heads,
                kv_num_heads=spec.kv_heads,
                do_rotary=int(turns),
                **({} if window is None else {"local_window_size": window}),
            )
            self.present[layer] = key, value
            return y

        return attention

    def add_norm(
        self,
        g: GraphBuilder,
        x: ir.Value,
        branch: ir.Value | None,
        weights: Weights,
        name: str,
        eps: float,
    ) -> tuple[ir.Value, ir.Value]:
        """Return (RMSNorm(x + branch), x + branch) from one operator."""
        if branch is None:
            return self.norm(g, x, weights, name, eps), x
        with g.scope(name.rsplit(".", maxsplit=1)[-1]):
            scale = weights.plain(g, f"{name}.weight")
            normed, _, _, total = g.ops(
                "SkipSimplifiedLayerNormalization", x, branch, scale, domain=DOMAIN, outputs=4, epsilon=eps
            )
            return normed, total


def _filled(g: GraphBuilder, x: ir.Value, total: ir.Value) -> ir.Value:
    """Return the positions int64 [1, seq] of the rows that the first sequence's piece fills, where it is alone."""
    seq = g.op("Squeeze", g.op("Shape", x, start=1, end=2))
    last = g.cast(total, "int64")
    return g.op("Unsqueeze", g.op("Range", g.op("Sub", last, seq), last, g.constant(1)), g.constant([0]))
