"""Rotary position embedding: the tables of a decoder, and the rotation in plain operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from divprune_edge.export.graph import DTYPES, GraphBuilder
from divprune_edge.models.decoder import DecoderSpec


def rope_tables(g: GraphBuilder, spec: DecoderSpec, dtype: str) -> tuple[ir.Value, ir.Value]:
    """Add (cosine, sine), each [context, head_dim / 2], rounded to ``dtype`` once."""
    cosine, sine = (
        g.find_initializer(f"rope.{part}")
        or g.initializer(f"rope.{part}", ir.tensor(table.astype(DTYPES[dtype].numpy()), name=f"rope.{part}"))
        for part, table in zip(("cos", "sin"), spec.rope.tables(spec.head_dim, spec.context), strict=True)
    )
    return cosine, sine


def positions_input(g: GraphBuilder, spec: DecoderSpec) -> ir.Value:
    """Declare ``position_ids`` int64 [batch, seq], or [3, batch, seq] where a token has three."""
    axes = [] if spec.rope.axes == 1 else [spec.rope.axes]
    return g.input("position_ids", "int64", [*axes, "batch", "seq"])


def rotary(g: GraphBuilder, spec: DecoderSpec, dtype: str, positions: ir.Value) -> tuple[ir.Value, ...]:
    """Return what the operator ``RotaryEmbedding`` takes beside heads, for all layers."""
    if spec.rope.axes == 1:
        return (*rope_tables(g, spec, dtype), positions)
    with g.scope("rope"):
        return angles(g, spec, dtype, positions)


def angles(g: GraphBuilder, spec: DecoderSpec, dtype: str, positions: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Look up (cosine, sine) of ``positions``, each [batch, seq, head_dim / 2].

    Where there are three, each angle is looked up by each of them, and taken by its own::

        positions [3, batch, seq] ─► Gather(table) ─► · which [3, 1, 1, head_dim / 2] ─► ReduceSum ─►
    """
    found = [g.op("Gather", table, positions, axis=0) for table in rope_tables(g, spec, dtype)]
    if spec.rope.axes > 1:
        mine = np.eye(spec.rope.axes)[spec.rope.axis_of(spec.head_dim)].T[:, None, None]
        which = g.constant(mine, dtype)
        found = [g.op("ReduceSum", g.op("Mul", each, which), g.constant([0]), keepdims=0) for each in found]
    return found[0], found[1]


class PlainRope:
    """Turns heads by the angles of their positions, which are looked up once for all layers."""

    def __init__(self, g: GraphBuilder, spec: DecoderSpec, dtype: str, positions: ir.Value) -> None:
        """Look up the angles of ``positions`` [batch, seq], or [3, batch, seq]."""
        self._half = spec.head_dim // 2
        with g.scope("rope"):
            self._cosine, self._sine = (
                g.op("Unsqueeze", table, g.constant([2])) for table in angles(g, spec, dtype, positions)
            )

    def __call__(self, g: GraphBuilder, x: ir.Value) -> ir.Value:
        """Return heads [batch, seq, heads, head_dim], turned.

        ::

            x ─► Split ─┬ a ─► a · cos - b · sin ─┐
                        └ b ─► b · cos + a · sin ─┴► Concat ─►
        """
        with g.scope("rope"):
            a, b = g.ops("Split", x, g.constant([self._half, self._half]), outputs=2, axis=-1)
            first = g.op("Sub", g.op("Mul", a, self._cosine), g.op("Mul", b, self._sine))
            second = g.op("Add", g.op("Mul", b, self._cosine), g.op("Mul", a, self._sine))
            return g.op("Concat", first, second, axis=-1)


class SomeRows:
    """Turns a few rows of the first sequence, for what looks at some queries or keys beside a layer's attention.

    ``positions`` writes those of the piece, int64 [1, seq] or [3, 1, seq], where they are first needed; a set of rows
    is looked up once for all layers.
    """

    def __init__(self, spec: DecoderSpec, dtype: str, positions: Callable[[], ir.Value]) -> None:
        self._spec, self._dtype, self._positions = spec, dtype, positions
        self._all: ir.Value | None = None
        self._ropes: dict[ir.Value, PlainRope] = {}

    def __call__(self, g: GraphBuilder, x: ir.Value, rows: ir.Value, heads: int) -> ir.Value:
        """Return heads [heads, rows, head_dim] of ``rows`` int64 [rows] of x [batch, seq, heads x head_dim]."""
        taken = first_of(g, g.op("Gather", x, rows, axis=1), 0)
        taken = g.op("Reshape", taken, g.constant([0, 0, heads, self._spec.head_dim]))
        if rows not in self._ropes:
            self._all = self._positions() if self._all is None else self._all
            mine = g.op("Gather", self._all, rows, axis=-1)
            self._ropes[rows] = PlainRope(g, self._spec, self._dtype, mine)
        turned = g.op("Transpose", self._ropes[rows](g, taken), perm=[0, 2, 1, 3])
        return g.op("Squeeze", turned, g.constant([0]))


def first_sequence(g: GraphBuilder, spec: DecoderSpec, positions: ir.Value) -> ir.Value:
    """Return the positions of the first sequence of a batch."""
    return first_of(g, positions, int(spec.rope.axes > 1))


def first_of(g: GraphBuilder, x: ir.Value, axis: int) -> ir.Value:
    """Return the first along one axis, which stays."""
    return g.op("Slice", x, *map(g.constant, ([0], [1], [axis])))
