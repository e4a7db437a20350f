"""The KV cache at the border of a language graph: names and shapes that all dialects share."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.rope import first_of
from divprune_edge.models.decoder import DecoderSpec

Cache = dict[int, tuple[ir.Value, ir.Value]]
"""Number of a layer -> its keys and values."""


def cache_inputs(g: GraphBuilder, spec: DecoderSpec, dtype: str, rows: int | str, layers: range) -> Cache:
    """Declare ``past_key_values.{i}.key`` and ``.value`` [batch, kv_heads, rows, head_dim], in layer order."""
    values = [
        g.input(f"past_key_values.{i}.{part}", dtype, ["batch", spec.kv_heads, rows, spec.head_dim])
        for i in layers
        for part in ("key", "value")
    ]
    return dict(zip(layers, zip(values[::2], values[1::2], strict=True), strict=True))


def cache_outputs(
    g: GraphBuilder, cache: Cache, prefix: str, spec: DecoderSpec, dtype: str, rows: int | str
) -> None:
    """Declare ``{prefix}.{i}.key`` and ``.value`` of the same shape, in layer order."""
    for i, pair in sorted(cache.items()):
        for part, value in zip(("key", "value"), pair, strict=True):
            g.output(value, f"{prefix}.{i}.{part}", dtype, ["batch", spec.kv_heads, rows, spec.head_dim])


def split_heads(g: GraphBuilder, x: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """Return [batch, seq, heads, head_dim] of [batch, seq, heads x head_dim]."""
    return g.op("Reshape", x, g.constant([0, 0, heads, head_dim]))


def heads_first(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Exchange seq and heads in [batch, seq, heads, head_dim]; its own inverse."""
    return g.op("Transpose", x, perm=[0, 2, 1, 3])


def merge_heads(g: GraphBuilder, x: ir.Value, width: int) -> ir.Value:
    """Return [batch, seq, width] of [batch, heads, seq, head_dim]."""
    return g.op("Reshape", heads_first(g, x), g.constant([0, 0, width]))


def first_rows(g: GraphBuilder, cache: ir.Value, rows: ir.Value) -> ir.Value:
    """Return [kv_heads, rows, head_dim] of the first sequence of a cache [batch, kv_heads, …, head_dim]."""
    return g.op("Squeeze", first_of(g, g.op("Gather", cache, rows, axis=2), 0), g.constant([0]))


def check_windows(spec: DecoderSpec, dialect: str) -> None:
    """Check that one mask does for all layers.

    Raises:
        UserError: some have a sliding window, and not all the same.
    """
    if spec.windows and spec.only_window is None:
        sizes = sorted({size for size in spec.windows if size})
        raise UserError(
            f"Some layers of the language model have a sliding window of {sizes[0]} tokens and others not, for which "
            f"--dialect {dialect} has no masks: use a --capacity of at most {sizes[0]}, or --dialect portable.",
            code="sliding-window-unsupported",
        )
