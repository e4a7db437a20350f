"""What a schedule's method reads of layers, written beside their attention: a few query rows, never all of q times k.

Inputs, made on the host, of which a graph has those that its method needs: ``visual_rows`` int64 [scored], the rows of
the visual tokens in this piece of the sequence; ``query_rows.<queries>`` int64, see
:data:`~divprune_edge.models.schedules.method.Queries`; ``key_rows`` int64 [keys], the rows of the cache that a query
may see at most, and ``past_rows`` int64 [1], how many there were before this piece. Where nothing is asked for, in
decode, each has one element, 0. All of them are of the first sequence of a batch, which is alone where it matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from divprune_edge.export.dialects import Dialect
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.schedules.method import Queries
from divprune_edge.models.schedules.parts import Part

_HIDDEN = float(np.finfo(np.float32).min / 2)


class Scores:
    """The readings of one graph: :meth:`read` of each layer, then :meth:`finish`."""

    def __init__(self, g: GraphBuilder, part: Part, decoder: DecoderSpec, dialect: Dialect) -> None:
        self.g, self._part, self.decoder, self.dialect = g, part, decoder, dialect
        self._found: dict[str, list[ir.Value]] = {}
        self._inputs: dict[str, ir.Value] = {}

    def read(
        self,
        layer: int,
        q: ir.Value,
        k: ir.Value,
        before: ir.Value,
        middle: ir.Value | None = None,
        branch: ir.Value | None = None,
    ) -> None:
        """Write what is read of a layer: of one that this graph has, or of the one behind it, which it only projects.

        ``q`` and ``k`` [batch, seq, heads x head_dim] are not turned; what leaves the layer is ``middle + branch``.
        """
        for watch in self._part.watches(layer):
            with self.g.scope(f"scores.{watch.name}"):
                seen = _Seen(self, layer, q, k, before, middle, branch)
                self._found.setdefault(watch.name, []).append(watch.body(self.g, seen))

    def finish(self) -> None:
        """Declare ``scores.<watch>`` float32 [scored]."""
        for name, values in self._found.items():
            total = values[0]
            for value in values[1:]:
                total = self.g.op("Add", total, value)
            self.g.output(total, f"scores.{name}", "float32", ["scored"])

    def rows(self, name: str, size: int | str) -> ir.Value:
        """Return an input int64 [size], declared where it is first needed."""
        if name not in self._inputs:
            self._inputs[name] = self.g.input(name, "int64", [size])
        return self._inputs[name]

    @property
    def visual_rows(self) -> ir.Value:
        """The rows of the visual tokens."""
        return self.rows("visual_rows", "scored")

    def query_rows(self, queries: Queries) -> ir.Value:
        """The rows that ``queries`` stands for."""
        return self.rows(f"query_rows.{queries}", 1 if queries == "last" else f"{queries}_rows")

    def has(self, layer: int) -> bool:
        """Whether the layer's cache is this graph's."""
        return layer in self._part.numbers


@dataclass(frozen=True)
class _Seen:
    """See :class:`~divprune_edge.models.schedules.method.LayerGraph`."""

    scores: Scores
    layer: int
    q: ir.Value
    k: ir.Value
    before: ir.Value
    middle: ir.Value | None
    branch: ir.Value | None

    @property
    def after(self) -> ir.Value:
        """What leaves the layer."""
        return self.scores.g.op("Add", self.middle, self.branch)

    def of_visual(self, hidden: ir.Value) -> ir.Value:
        """Return [m, D]."""
        return self._taken(hidden, self.scores.visual_rows)

    def of(self, queries: Queries, hidden: ir.Value) -> ir.Value:
        """Return [rows, D]."""
        return self._taken(hidden, self.scores.query_rows(queries))

    def _taken(self, hidden: ir.Value, rows: ir.Value) -> ir.Value:
        g = self.scores.g
        first = g.op("Slice", g.op("Gather", hidden, rows, axis=1), *map(g.constant, ([0], [1], [0])))
        return g.cast(g.op("Squeeze", first, g.constant([0])), "float32")

    def shares(self, queries: Queries) -> ir.Value:
        """Return [heads, rows, m].

        ::

            q ─► rows ─► turn ─► · keysᵀ ─► what a row does not see is hidden ─► Softmax ─► columns of visual tokens ─►

        Of the layer behind, whose cache is the next graph's, the keys are those of this piece.
        """
        g, decoder, dialect = self.scores.g, self.scores.decoder, self.scores.dialect
        rows, visual = self.scores.query_rows(queries), self.scores.visual_rows
        q = g.cast(dialect.turned(g, self.q, rows, decoder.heads), "float32")
        if self.scores.has(self.layer):
            key_rows, past = self.scores.rows("key_rows", "keys"), self.scores.rows("past_rows", 1)
            k = dialect.keys(g, self.layer, key_rows, past)
            place, columns = g.op("Add", rows, past), g.op("Add", visual, past)
        else:
            size = g.op("Squeeze", g.op("Shape", self.k, start=1, end=2))
            key_rows = g.op("Range", g.constant(0), size, g.constant(1))
            k = dialect.turned(g, self.k, key_rows, decoder.kv_heads)
            place, columns = rows, visual
        # The queries of a group are the rows of one matrix to their common keys.
        grouped = g.op("Reshape", q, g.constant([decoder.kv_heads, -1, decoder.head_dim]))
        logits = g.op("MatMul", grouped, g.op("Transpose", g.cast(k, "float32"), perm=[0, 2, 1]))
        logits = g.op("Mul", logits, g.constant(decoder.head_dim**-0.5, "float32"))
        seen = self._seen(g, place, key_rows)
        count = g.op("Shape", rows)
        shape = g.op("Concat", g.constant([decoder.heads]), count, g.op("Shape", key_rows), axis=0)
        logits = g.op("Reshape", logits, shape)
        shares = g.op("Softmax", g.op("Where", seen, logits, g.constant(_HIDDEN, "float32")), axis=-1)
        return g.op("Gather", shares, columns, axis=2)

    def _seen(self, g: GraphBuilder, rows: ir.Value, keys: ir.Value) -> ir.Value:
        """Return bool [rows, keys]: what each row of the sequence may see."""
        rows = g.op("Unsqueeze", rows, g.constant([1]))
        seen = g.op("LessOrEqual", keys, rows)
        window = self.scores.decoder.window(self.layer)
        if window is None:
            return seen
        return g.op("And", seen, g.op("Greater", keys, g.op("Sub", rows, g.constant(window))))
