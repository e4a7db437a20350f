"""The language model graph: ids of the token table in, logits of one position per sequence out."""

from __future__ import annotations

import onnx_ir as ir

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.dialects import Dialect
from divprune_edge.export.formats import Format
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.greedy import next_id
from divprune_edge.export.layers.activation import activate
from divprune_edge.export.layers.linear import linear, output_head
from divprune_edge.export.scores import Scores
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
    part = part or whole(spec.decoder.layers)
    decoder = spec.decoder
    dtype = format.dtype
    weights = Weights(checkpoint, names.decoder, format)
    head = Weights(checkpoint, "", format)
    g = GraphBuilder("language_model")
    if part.first:
        entry = g.input("hidden", dtype, ["batch", "seq", part.width(decoder, at=0)])
    else:
        entry = g.input("input_ids", "int64", ["batch", "seq"])
        visual = g.input("visual_tokens", token_dtype, ["batch", "visual", row_width(spec)])

    where = g.input("logits_index", "int64", ["batch"]) if part.last else None
    attention = dialect.begin(g, decoder, dtype, entry, part.numbers)
    scores = Scores(g, part, decoder, dialect)
    projected: list[ir.Value] = []
    with g.scope("language_model"):
        if part.first:
            stacked: list[ir.Value] = []
            x, *projected = _parts_of(g, entry, decoder) if part.begins_projected else [entry]
        else:
            x, *stacked = _token_table(
                g, entry, g.cast(visual, dtype) if token_dtype != dtype else visual, weights, spec.stacked
            )
        branch: ir.Value | None = None  # added to x where the next norm begins
        for i in part.numbers:
            with g.scope(f"layers.{i}"):
                if projected:
                    q, k, v = projected
                    projected = []
                else:
                    x, q, k, v = _project(g, dialect, x, branch, decoder, weights, i)
                before = x
                with g.scope("self_attn"):
                    y = linear(g, attention(g, i, q, k, v), weights, f"layers.{i}.self_attn.o_proj")
                norm = f"layers.{i}.post_attention_layernorm"
                y, x = dialect.add_norm(g, x, y, weights, norm, decoder.norm_eps)
                branch = _mlp(g, y, decoder, weights, f"layers.{i}.mlp")
                scores.read(i, q, k, before, x, branch)
            if i < len(stacked):
                with g.scope(f"deepstack.{i}"):
                    x = g.op("Add", x, stacked[i])
        end = part.first + part.layers
        if part.projected:
            with g.scope(f"layers.{end}"):
                x, q, k, v = _project(g, dialect, x, branch, decoder, weights, end)
                scores.read(end, q, k, x)
                x = g.op("Concat", x, q, k, v, axis=-1)
        elif branch is not None:
            x = g.op("Add", x, branch)
        if where is None:
            g.output(x, "hidden_out", dtype, ["batch", "seq", part.width(decoder, at=1)])
            scores.finish()
        else:
            with g.scope("last"):
                last = g.op("GatherND", x, g.op("Unsqueeze", where, g.constant([1])), batch_dims=1)
            last, _ = dialect.add_norm(g, last, None, weights, "norm", decoder.norm_eps)
    if where is None:
        dialect.finish(g, decoder, dtype)
        return _model(g, dialect, format, checkpoint, names, decoder, part)
    logits = output_head(g, last, head, names.head)
    vocabulary = checkpoint.rows(names.head)
    logits = g.cast(logits, "float32")
    g.output(logits, "logits", "float32", ["batch", vocabulary])
    if forbidden is not None:
        next_id(g, logits, vocabulary, forbidden)
    dialect.finish(g, decoder, dtype)
    model = _model(g, dialect, format, checkpoint, names, decoder, part)
    if forbidden is not None:
        model.metadata_props["divprune_edge.forbidden_ids"] = str(forbidden.entries())
    return model


def _model(
    g: GraphBuilder,
    dialect: Dialect,
    format: Format,
    checkpoint: Checkpoint,
    names: WeightNames,
    decoder: DecoderSpec,
    part: Part,
) -> ir.Model:
    model = g.model(max(dialect.opset, format.opset), domains=sorted({*dialect.domains, *format.domains}))
    # What no input or output shows and a runtime must know; it holds the manifest against it.
    if not part.first:
        rows = checkpoint.rows(f"{names.decoder}embed_tokens.weight")
        model.metadata_props["divprune_edge.embedding_rows"] = str(rows)
    model.metadata_props["divprune_edge.context"] = str(decoder.context)
    return model


def _project(
    g: GraphBuilder,
    dialect: Dialect,
    x: ir.Value,
    branch: ir.Value | None,
    decoder: DecoderSpec,
    weights: Weights,
    layer: int,
) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Return the residual stream that enters a layer, and its queries, keys and values."""
    y, x = dialect.add_norm(g, x, branch, weights, f"layers.{layer}.input_layernorm", decoder.norm_eps)
    with g.scope("self_attn"):
        name = f"layers.{layer}.self_attn"
        q, k, v = (linear(g, y, weights, f"{name}.{p}_proj") for p in "qkv")
        if decoder.qk_norm:
            q = _head_norm(g, dialect, q, decoder, weights, f"{name}.q_norm")
            k = _head_norm(g, dialect, k, decoder, weights, f"{name}.k_norm")
    return x, q, k, v


def _parts_of(g: GraphBuilder, entry: ir.Value, decoder: DecoderSpec) -> list[ir.Value]:
    """Return what a part hands on that has the projections of the layer behind it: x, q, k, v."""
    widths = [decoder.hidden, *(decoder.head_dim * n for n in (decoder.heads, *[decoder.kv_heads] * 2))]
    return g.ops("Split", entry, g.constant(widths), outputs=4, axis=-1)


def _token_table(
    g: GraphBuilder, ids: ir.Value, visual: ir.Value, weights: Weights, stacked: int
) -> list[ir.Value]:
    """Look ids up: below V a vocabulary row, V + i is row i of ``visual`` [batch, visual, D · (1 + stacked)].

    ::

        ids ─► Min(V - 1) ─► Gather(embedding) ────────────────┐
        ids ─► - V ─► Max(0) ─► Min(visual - 1) ─► GatherND ───┴► Where(ids < V) ─►

    Each id stands for itself, so chunked prefill, prefix reuse and decode need no further care. What is stacked behind
    the tokens follows, [batch, seq, D] each, with zeros for text.
    """
    with g.scope("embed_tokens"):
        table = weights.plain(g, "embed_tokens.weight")
        rows, width = weights.shape("embed_tokens.weight")
        text = g.op("Gather", table, g.op("Min", ids, g.constant(rows - 1)))
        last = g.op("Sub", g.op("Shape", visual, start=1, end=2), g.constant([1]))
        row = g.op("Min", g.op("Max", g.op("Sub", ids, g.constant(rows)), g.constant(0)), last)
        image = g.op("GatherND", visual, g.op("Unsqueeze", row, g.constant([2])), batch_dims=1)
        is_text = g.op("Unsqueeze", g.op("Less", ids, g.constant(rows)), g.constant([2]))
        if not stacked:
            return [g.op("Where", is_text, text, image)]
        parts = g.ops("Split", image, g.constant([width] * (1 + stacked)), outputs=1 + stacked, axis=-1)
        nothing = g.constant(0.0, weights.dtype)
        return [g.op("Where", is_text, text if i == 0 else nothing, part) for i, part in enumerate(parts)]


def _head_norm(
    g: GraphBuilder, dialect: Dialect, x: ir.Value, spec: DecoderSpec, weights: Weights, name: str
) -> ir.Value:
    """Normalise each head of [batch, seq, heads x head_dim] by itself."""
    heads = g.op("Reshape", x, g.constant([0, 0, -1, spec.head_dim]))
    normed, _ = dialect.add_norm(g, heads, None, weights, name, spec.norm_eps)
    return g.op("Reshape", normed, g.constant([0, 0, -1]))


def _mlp(g: GraphBuilder, x: ir.Value, spec: DecoderSpec, weights: Weights, name: str) -> ir.Value:
    """Gated MLP: ``down(act(gate(x)) * up(x))``."""
    with g.scope("mlp"):
        gate = activate(g, linear(g, x, weights, f"{name}.gate_proj"), spec.activation, weights.dtype)
        return linear(
            g, g.op("Mul", gate, linear(g, x, weights, f"{name}.up_proj")), weights, f"{name}.down_proj"
        )
