"""Dialect ``decomposed``: plain operators only, and a KV cache of fixed capacity that the graph only reads.

For TensorRT 10.3 (JetPack 6.2), whose parser ends at opset 20 and knows neither ``Attention`` nor an operator that
writes into a cache; see ``docs/kv-cache.md`` for the alternatives. ONNX Runtime runs the same file.

Inputs beyond ids and visual tokens: ``cache_mask`` bool [batch, 1, 1, capacity] (rows that are filled;
[batch, 1, seq, capacity] where a sliding window hides some of them from some queries), ``new_mask``
bool [batch, 1, seq, seq] (which new key each new query may see; itself at least), ``position_ids`` int64
[batch, seq], and per layer ``past_key_values.{i}.key`` and ``.value`` [batch, kv_heads, capacity, head_dim].
Outputs: ``new_key_values.{i}.key`` and ``.value`` [batch, kv_heads, seq, head_dim], the new rows alone: the caller
appends them to the cache before the next step. Rows that the mask hides must be finite numbers. Ragged batches are
padded on the right.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune_edge.export.dialects.cache import (
    Cache,
    cache_inputs,
    cache_outputs,
    check_windows,
    first_rows,
    heads_first,
    merge_heads,
    split_heads,
)
from divprune_edge.export.dialects.dialect import Attention, Dialect
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.norm import plain_rms_norm
from divprune_edge.export.layers.rope import PlainRope, SomeRows, first_sequence, positions_input
from divprune_edge.export.weights import Weights
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.dialects import DIALECTS

# Added to the scores of hidden keys. Finite: an infinite one less itself would be no number.
_HIDDEN = float(np.finfo(np.float32).min / 2)
_END = int(np.iinfo(np.int64).max)


class Decomposed(Dialect):
    """See the module's text."""

    facts = DIALECTS["decomposed"]
    opset = 20

    def __init__(self, capacity: int | None = None) -> None:
        assert capacity is not None, "the cache's size is part of the graph"
        super().__init__(capacity)
        self._capacity = capacity
        self._new: Cache = {}
        self._past: Cache = {}

    @staticmethod
    def check(spec: DecoderSpec, dtype: str) -> None:
        """The masks are the same for all layers."""
        check_windows(spec, "decomposed")

    def begin(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, x: ir.Value, layers: range) -> Attention:
        """Declare masks, positions and past; write what all layers share."""
        queries = 1 if spec.only_window is None else "seq"
        filled = g.input("cache_mask", "bool", ["batch", 1, queries, self._capacity])
        visible = g.input("new_mask", "bool", ["batch", 1, "seq", "seq"])
        positions = positions_input(g, spec)
        past = self._past = cache_inputs(g, spec, dtype, self._capacity, layers)
        group = spec.heads // spec.kv_heads
        with g.scope("mask"):
            cache_bias, new_bias = (_bias(g, mask) for mask in (filled, visible))
            if group > 1:
                new_bias = g.op("Concat", *[new_bias] * group, axis=2)
                if spec.only_window is not None:
                    cache_bias = g.op("Concat", *[cache_bias] * group, axis=2)
        rope = PlainRope(g, spec, dtype, positions)
        self.some_rows = SomeRows(spec, dtype, lambda: first_sequence(g, spec, positions))
        scale = g.constant(spec.head_dim**-0.5, dtype)

        def attention(g: GraphBuilder, layer: int, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
            """One softmax over two parts: what the cache holds, and what this step brings.

            The queries of a group, one after the other, are the rows of one matrix [group x seq, head_dim] to
            their common keys, so that these need no copies.

            ::

                q ─┬► · past keyᵀ ─► + bias ─┐                     ┌► · past value ─┐
                   └► · keyᵀ ──────► + bias ─┴► Concat ─► Softmax ─┴► · value ──────┴► Add ─► merge heads ─►
            """
            past_key, past_value = past[layer]
            q = g.op("Mul", rope(g, split_heads(g, q, spec.heads, spec.head_dim)), scale)
            q = heads_first(g, q)
            if group > 1:
                q = g.op("Reshape", q, g.constant([0, spec.kv_heads, -1, spec.head_dim]))
            k = heads_first(g, rope(g, split_heads(g, k, spec.kv_heads, spec.head_dim)))
            v = heads_first(g, split_heads(g, v, spec.kv_heads, spec.head_dim))
            self._new[layer] = k, v
            scores = [
                g.op("Add", _scores(g, q, key, dtype), bias)
                for key, bias in ((past_key, cache_bias), (k, new_bias))
            ]
            shares = g.op("Softmax", g.op("Concat", *scores, axis=3), axis=3)
            if dtype != "float32":
                shares = g.cast(shares, dtype)
            border = g.constant([self._capacity])
            old = g.op("Slice", shares, g.constant([0]), border, g.constant([3]))
            new = g.op("Slice", shares, border, g.constant([_END]), g.constant([3]))
            y = g.op("Add", g.op("MatMul", old, past_value), g.op("MatMul", new, v))
            if group > 1:
                y = g.op("Reshape", y, g.constant([0, spec.heads, -1, spec.head_dim]))
            return merge_heads(g, y, spec.heads * spec.head_dim)

        return attention

    def norm(self, g: GraphBuilder, x: ir.Value, weights: Weights, name: str, eps: float) -> ir.Value:
        """Plain operators."""
        return plain_rms_norm(g, x, weights, name, eps)

    def keys(self, g: GraphBuilder, layer: int, rows: ir.Value, past: ir.Value) -> ir.Value:
        """Take old ones from the cache, and new ones from what the step brings."""
        old, new = self._past[layer][0], self._new[layer][0]
        last = g.op("Sub", g.op("Shape", new, start=2, end=3), g.constant(1))
        place = g.op("Max", g.op("Min", g.op("Sub", rows, past), last), g.constant(0))
        taken = first_rows(g, old, g.op("Min", rows, g.constant(self._capacity - 1)))
        is_old = g.op("Unsqueeze", g.op("Less", rows, past), g.constant([0, 2]))
        return g.op("Where", is_old, taken, first_rows(g, new, place))

    def finish(self, g: GraphBuilder, spec: DecoderSpec, dtype: str) -> None:
        """Declare the new rows."""
        cache_outputs(g, self._new, "new_key_values", spec, dtype, "seq")


def _bias(g: GraphBuilder, mask: ir.Value) -> ir.Value:
    """Return float32 of the mask's shape: nothing to keys that are seen, what hides them to the others."""
    return g.op("Where", mask, g.constant(0.0, "float32"), g.constant(_HIDDEN, "float32"))


def _scores(g: GraphBuilder, q: ir.Value, key: ir.Value, dtype: str) -> ir.Value:
    """Return float32 [batch, kv_heads, rows of q, rows of key]."""
    scores = g.op("MatMul", q, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    return scores if dtype == "float32" else g.cast(scores, "float32")
