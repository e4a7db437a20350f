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
from divprune_edge.export.layers.rope import first_of
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.schedules.method import Queries
from divprune_edge.models.schedules.parts import Part

_HIDDEN = float(np.finfo(np.float32).min / 2)


@dataclass(frozen=True)
class WrittenLayer:
    """A layer as it was written.

    Attributes:
        number: which one.
        q: [batch, seq, heads x head_dim], not turned.
        k: [batch, seq, kv_heads x head_dim], likewise.
        before: hidden states that enter it, [batch, seq, D].
        normed: the same behind the norm, as its attention reads them; None where nothing is read of the layer.
        middle: with the attention's output added; None of a layer that was only projected, as what follows.
        fed: the same behind the norm, as its MLP reads them.
        branch: what the MLP adds.
    """

    number: int
    q: ir.Value
    k: ir.Value
    before: ir.Value
    normed: ir.Value | None
    middle: ir.Value | None = None
    fed: ir.Value | None = None
    branch: ir.Value | None = None


class Scores:
    """The readings of one graph: :meth:`read` of each layer, then :meth:`finish`."""

    def __init__(self, g: GraphBuilder, part: Part, decoder: DecoderSpec, dialect: Dialect) -> None:
        self.g, self._part, self.decoder, self.dialect = g, part, decoder, dialect
        self._found: dict[str, list[ir.Value]] = {}
        self._inputs: dict[str, ir.Value] = {}

    def read(self, layer: WrittenLayer) -> None:
        """Write what is read of a layer: of one that this graph has, or of the one behind, which it only projects."""
        for watch in self._part.watches(layer.number):
            with self.g.scope(f"scores.{watch.name}"):
                self._found.setdefault(watch.name, []).append(watch.body(self.g, _LayerGraph(self, layer)))

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
class _LayerGraph:
    """See :class:`~divprune_edge.models.schedules.method.LayerGraph`."""

    scores: Scores
    layer: WrittenLayer

    @property
    def before(self) -> ir.Value:
        """What enters the layer."""
        return self.layer.before

    @property
    def middle(self) -> ir.Value | None:
        """The same with its attention's output added."""
        return self.layer.middle

    @property
    def after(self) -> ir.Value:
        """What leaves the layer."""
        return self.scores.g.op("Add", self.layer.middle, self.layer.branch)

    @property
    def normed(self) -> tuple[ir.Value | None, ir.Value | None]:
        """What its attention reads, and what its MLP does."""
        return self.layer.normed, self.layer.fed

    @property
    def attention(self) -> ir.Value:
        """Return [heads, n, n] of the rows of this piece."""
        rows = self.scores.query_rows("all")
        return self._shares(rows, self._turned_keys(rows), rows, rows)

    def of_visual(self, hidden: ir.Value) -> ir.Value:
        """Return [m, D]."""
        return self._taken(hidden, self.scores.visual_rows)

    def of(self, queries: Queries, hidden: ir.Value) -> ir.Value:
        """Return [rows, D]."""
        return self._taken(hidden, self.scores.query_rows(queries))

    def _taken(self, hidden: ir.Value, rows: ir.Value) -> ir.Value:
        g = self.scores.g
        first = first_of(g, g.op("Gather", hidden, rows, axis=1), 0)
        return g.cast(g.op("Squeeze", first, g.constant([0])), "float32")

    def shares(self, queries: Queries) -> ir.Value:
        """Return [heads, rows, m].

        Of the layer behind, whose cache is the next graph's, the keys are those of this piece.
        """
        g, scores = self.scores.g, self.scores
        rows, visual = scores.query_rows(queries), scores.visual_rows
        if not scores.has(self.layer.number):
            size = g.op("Squeeze", g.op("Shape", self.layer.k, start=1, end=2))
            keys = g.op("Range", g.constant(0), size, g.constant(1))
            return g.op("Gather", self._shares(rows, self._turned_keys(keys), rows, keys), visual, axis=2)
        keys, past = scores.rows("key_rows", "keys"), scores.rows("past_rows", 1)
        k = scores.dialect.keys(g, self.layer.number, keys, past)
        shares = self._shares(rows, k, g.op("Add", rows, past), keys)
        return g.op("Gather", shares, g.op("Add", visual, past), axis=2)

    def _turned_keys(self, rows: ir.Value) -> ir.Value:
        scores = self.scores
        return scores.dialect.turned(scores.g, self.layer.k, rows, scores.decoder.kv_heads)

    def _shares(self, rows: ir.Value, k: ir.Value, places: ir.Value, keys: ir.Value) -> ir.Value:
        """Return float32 [heads, rows, keys], whose rows sum up to one.

        ::

            q ─► rows ─► turn ─► · kᵀ ─► what a row does not see is hidden ─► Softmax ─►

        ``rows`` are those of the piece, ``places`` the same as ``keys`` are counted; ``k`` is [kv_heads, keys, d].
        """
        g, decoder = self.scores.g, self.scores.decoder
        q = g.cast(self.scores.dialect.turned(g, self.layer.q, rows, decoder.heads), "float32")
        # The queries of a group are the rows of one matrix to their common keys.
        grouped = g.op("Reshape", q, g.constant([decoder.kv_heads, -1, decoder.head_dim]))
        logits = g.op("MatMul", grouped, g.op("Transpose", g.cast(k, "float32"), perm=[0, 2, 1]))
        logits = g.op("Mul", logits, g.constant(decoder.head_dim**-0.5, "float32"))
        shape = g.op("Concat", g.constant([decoder.heads]), g.op("Shape", rows), g.op("Shape", keys), axis=0)
        logits = g.op("Reshape", logits, shape)
        hidden = g.constant(_HIDDEN, "float32")
        return g.op("Softmax", g.op("Where", self._seen(g, places, keys), logits, hidden), axis=-1)

    def _seen(self, g: GraphBuilder, rows: ir.Value, keys: ir.Value) -> ir.Value:
        """Return bool [rows, keys]: what each row of the sequence may see."""
        rows = g.op("Unsqueeze", rows, g.constant([1]))
        seen = g.op("LessOrEqual", keys, rows)
        window = self.scores.decoder.window(self.layer.number)
        if window is None:
            return seen
        return g.op("And", seen, g.op("Greater", keys, g.op("Sub", rows, g.constant(window))))
