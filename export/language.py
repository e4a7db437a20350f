"""The language model graph: ids of the token table in, logits of one position per sequence out."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.dialects import Dialect
from divprune_edge.export.dialects.dialect import Attention
from divprune_edge.export.formats import Format
from divprune_edge.export.graph import DTYPES, GraphBuilder
from divprune_edge.export.greedy import next_id
from divprune_edge.export.layers.activation import activate
from divprune_edge.export.layers.linear import linear, output_head
from divprune_edge.export.scores import Scores, WrittenLayer
from divprune_edge.export.weights import Weights
from divprune_edge.ids import Ids
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.families.family import Spec, WeightNames
from divprune_edge.models.schedules.parts import Part, whole
from divprune_edge.models.tiles import row_width


def build_language_model(
    spec: Spec,
    names: WeightNames,
    checkpoint: Checkpoint,
    dialect: Dialect,
    format: Format,
    token_dtype: str,
    forbidden: Ids | None = None,
    part: Part | None = None,
) -> ir.Model:
    """Return the model that serves prefill and decode alike.

    ::

        input_ids ─► token table ─► layers ─► hidden state at logits_index ─► norm ─► lm_head ─► logits
        visual_tokens ───┘            │
        KV cache in ──────────────────┴► KV cache out

    With ``forbidden``, ids that are never sampled, it says the next id of greedy decoding as well. Of a chain it is one
    ``part``: the first has the token table, the last one the head, and between them go hidden states::

        hidden [batch, seq, width] ─► layers ─► hidden_out [batch, seq, width], scores.<watch> float32 [scored]

    where behind a token's hidden state may lie its queries, keys and values for the layer that follows.
    """
    writer = _Writer(
        spec, Weights(checkpoint, names.decoder, format), dialect, part or whole(spec.decoder.layers)
    )
    last = writer.write(token_dtype)
    g = writer.g
    if last is not None:
        logits = output_head(g, last, Weights(checkpoint, "", format), names.head)
        vocabulary = checkpoint.rows(names.head)
        logits = g.cast(logits, "float32")
        g.output(logits, "logits", "float32", ["batch", vocabulary])
        if forbidden is not None:
            next_id(g, logits, vocabulary, forbidden)
    dialect.finish(g, spec.decoder, format.dtype)
    model = g.model(max(dialect.opset, format.opset), domains=sorted({*dialect.domains, *format.domains}))
    # What no input or output shows and a runtime must know; it holds the manifest against it.
    noted = {"context": spec.decoder.context}
    if writer.part.first == 0:
        noted = {"embedding_rows": checkpoint.rows(f"{names.decoder}embed_tokens.weight"), **noted}
    for name, value in noted.items():
        model.metadata_props[f"divprune_edge.{name}"] = str(value)
    if last is not None and forbidden is not None:
        model.metadata_props["divprune_edge.forbidden_ids"] = str(forbidden.entries())
    return model


class _Writer:
    """One graph of decoder layers in the making: ``x`` is the residual stream, ``branch`` what a norm adds to it."""

    def __init__(self, spec: Spec, weights: Weights, dialect: Dialect, part: Part) -> None:
        self.g, self.spec, self.decoder = GraphBuilder("language_model"), spec, spec.decoder
        self.weights, self.dialect, self.part, self.dtype = weights, dialect, part, weights.dtype
        self.scores = Scores(self.g, part, self.decoder, dialect)

    def write(self, token_dtype: str) -> ir.Value | None:
        """Write all layers; return the normed hidden state at ``logits_index``, None where they are handed on."""
        g, part = self.g, self.part
        entry, visual = self._inputs(token_dtype)
        where = g.input("logits_index", "int64", ["batch"]) if part.last else None
        attention = self.dialect.begin(g, self.decoder, self.dtype, entry, part.numbers)
        with g.scope("language_model"):
            x, projected, stacked = self._enter(entry, visual)
            branch: ir.Value | None = None
            for i in part.numbers:
                with g.scope(f"layers.{i}"):
                    x, branch = self._layer(i, attention, x, branch, projected)
                projected = ()
                if i < len(stacked):
                    with g.scope(f"deepstack.{i}"):
                        x = g.op("Add", x, stacked[i])
            if where is None:
                self._hand_on(x, branch)
                return None
            if branch is not None:
                x = g.op("Add", x, branch)
            with g.scope("last"):
                last = g.op("GatherND", x, g.op("Unsqueeze", where, g.constant([1])), batch_dims=1)
            last, _ = self._norm(last, None, "norm")
        return last

    def _inputs(self, token_dtype: str) -> tuple[ir.Value, ir.Value | None]:
        """Declare what enters, and the visual tokens that ids refer to."""
        g, part = self.g, self.part
        if part.first:
            return g.input("hidden", self.dtype, ["batch", "seq", part.width(self.decoder, at=0)]), None
        ids = g.input("input_ids", "int64", ["batch", "seq"])
        return ids, g.input("visual_tokens", token_dtype, ["batch", "visual", row_width(self.spec)])

    def _enter(
        self, entry: ir.Value, visual: ir.Value | None
    ) -> tuple[ir.Value, Sequence[ir.Value], Sequence[ir.Value]]:
        """Return the hidden states, what the graph before has projected of them, and what is stacked behind tokens."""
        g, decoder = self.g, self.decoder
        if visual is not None:
            if visual.dtype != DTYPES[self.dtype]:
                visual = g.cast(visual, self.dtype)
            x, *stacked = _token_table(g, entry, visual, self.weights, self.spec.stacked)
            return x, (), stacked
        if not self.part.begins_projected:
            return entry, (), ()
        widths = [decoder.hidden, *(decoder.head_dim * n for n in (decoder.heads, *[decoder.kv_heads] * 2))]
        x, *projected = g.ops("Split", entry, g.constant(widths), outputs=4, axis=-1)
        return x, projected, ()

    def _layer(
        self,
        i: int,
        attention: Attention,
        x: ir.Value,
        branch: ir.Value | None,
        projected: Sequence[ir.Value],
    ) -> tuple[ir.Value, ir.Value]:
        if projected:
            normed, (q, k, v) = None, projected
            if self.part.watches(i):  # the graph before has it, and does not hand it on
                normed, _ = self._norm(x, None, f"layers.{i}.input_layernorm")
        else:
            x, normed, q, k, v = self._project(i, x, branch)
        with self.g.scope("self_attn"):
            y = linear(self.g, attention(self.g, i, q, k, v), self.weights, f"layers.{i}.self_attn.o_proj")
        fed, middle = self._norm(x, y, f"layers.{i}.post_attention_layernorm")
        branch = _mlp(self.g, fed, self.decoder, self.weights, f"layers.{i}.mlp")
        self.scores.read(WrittenLayer(i, q, k, x, normed, middle, fed, branch))
        return middle, branch

    def _project(self, i: int, x: ir.Value, branch: ir.Value | None) -> tuple[ir.Value, ...]:
        """Return the residual stream that enters a layer, the same behind its norm, its queries, keys and values."""
        y, x = self._norm(x, branch, f"layers.{i}.input_layernorm")
        with self.g.scope("self_attn"):
            name = f"layers.{i}.self_attn"
            q, k, v = (linear(self.g, y, self.weights, f"{name}.{p}_proj") for p in "qkv")
            if self.decoder.qk_norm:
                q, k = self._head_norm(q, f"{name}.q_norm"), self._head_norm(k, f"{name}.k_norm")
        return x, y, q, k, v

    def _hand_on(self, x: ir.Value, branch: ir.Value | None) -> None:
        """Declare the hidden states, and what is read of the layers."""
        g, part = self.g, self.part
        if part.projected:
            end = part.first + part.layers
            with g.scope(f"layers.{end}"):
                x, normed, q, k, v = self._project(end, x, branch)
                self.scores.read(WrittenLayer(end, q, k, x, normed))
            x = g.op("Concat", x, q, k, v, axis=-1)
        elif branch is not None:
            x = g.op("Add", x, branch)
        g.output(x, "hidden_out", self.dtype, ["batch", "seq", part.width(self.decoder, at=1)])
        self.scores.finish()

    def _norm(self, x: ir.Value, branch: ir.Value | None, name: str) -> tuple[ir.Value, ir.Value]:
        return self.dialect.add_norm(self.g, x, branch, self.weights, name, self.decoder.norm_eps)

    def _head_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Normalise each head of [batch, seq, heads x head_dim] by itself."""
        heads = self.g.op("Reshape", x, self.g.constant([0, 0, -1, self.decoder.head_dim]))
        normed, _ = self._norm(heads, None, name)
        return self.g.op("Reshape", normed, self.g.constant([0, 0, -1]))


def _token_table(
    g: GraphBuilder, ids: ir.Value, visual: ir.Value, weights: Weights, stacked: int
) -> list[ir.Value]:
    """Look ids up: below V a vocabulary row, V + i is row i of ``visual`` [batch, visual, D · (1 + stacked)].

    ::

        ids ─► Min(V - 1) ─► Gather(embedding) ────────────────┐
        ids ─► - V ─► Max(0) ─► GatherND(visual) ──────────────┴► Where(ids < V) ─►

    Each id stands for itself, so chunked prefill, prefix reuse and decode need no further care. What is stacked behind
    the tokens follows, [batch, seq, D] each, with zeros for text. No id is held against the number of visual tokens:
    that would be arithmetic of shapes, which ONNX Runtime puts on the host, and no CUDA graph captures a copy from
    there. Whoever makes ids knows how many tokens there are.
    """
    with g.scope("embed_tokens"):
        table = weights.plain(g, "embed_tokens.weight")
        rows, width = weights.shape("embed_tokens.weight")
        text = g.op("Gather", table, g.op("Min", ids, g.constant(rows - 1)))
        row = g.op("Max", g.op("Sub", ids, g.constant(rows)), g.constant(0))
        image = g.op("GatherND", visual, g.op("Unsqueeze", row, g.constant([2])), batch_dims=1)
        is_text = g.op("Unsqueeze", g.op("Less", ids, g.constant(rows)), g.constant([2]))
        if not stacked:
            return [g.op("Where", is_text, text, image)]
        parts = g.ops("Split", image, g.constant([width] * (1 + stacked)), outputs=1 + stacked, axis=-1)
        nothing = g.constant(0.0, weights.dtype)
        return [g.op("Where", is_text, text if i == 0 else nothing, part) for i, part in enumerate(parts)]


def _mlp(g: GraphBuilder, x: ir.Value, spec: DecoderSpec, weights: Weights, name: str) -> ir.Value:
    """Gated MLP: ``down(act(gate(x)) * up(x))``."""
    with g.scope("mlp"):
        gate = activate(g, linear(g, x, weights, f"{name}.gate_proj"), spec.activation, weights.dtype)
        return linear(
            g, g.op("Mul", gate, linear(g, x, weights, f"{name}.up_proj")), weights, f"{name}.down_proj"
        )
