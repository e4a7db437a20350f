"""The graph that makes an image's rows of the tokens of its tiles, so that these stay where the encoder put them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune_edge.export.formats.plain import Plain
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.weights import Weights
from divprune_edge.manifest import VISUAL_TOKENS, GraphInfo, TensorInfo, tile_input
from divprune_edge.models.families.family import ASSEMBLE
from divprune_edge.models.signals import CLS_TOKEN

OPSET = 18


def build_assemble(plan: ExportPlan, vision: GraphInfo) -> ir.Model:
    """Return the model; what ``rows`` and ``weights`` are, :class:`~divprune_edge.processing.assembly.Assembly` says.

    ::

        newline ──┐
        tile_tokens [tiles, n, D] ─┴► Concat ─► Gather(rows [groups, N, r]) ─► · weights, summed ─► [groups, N, D]

    So goes each signal, with zeros in the newline's place, as there are where there is no newline; a class token is
    that of the tile of a group's first row.
    """
    size, sources = plan.candidates, plan.sources
    g = GraphBuilder(ASSEMBLE)
    given = [(out, g.input(tile_input(out.name), out.dtype, list(out.shape))) for out in vision.outputs]
    rows = g.input("rows", "int64", ["groups", size, sources])
    weights = g.input("weights", "float32", ["groups", size, sources]) if sources > 1 else None
    with g.scope(ASSEMBLE):
        for out, value in given:
            if out.name == CLS_TOKEN:
                g.output(
                    _of_first(g, value, rows, plan.spec.tokens),
                    out.name,
                    out.dtype,
                    ["groups", *out.shape[1:]],
                )
            else:
                found = _assembled(g, plan, out, value, rows, weights)
                g.output(found, out.name, out.dtype, ["groups", size, *out.shape[2:]])
    return g.model(OPSET)


def _assembled(
    g: GraphBuilder,
    plan: ExportPlan,
    out: TensorInfo,
    value: ir.Value,
    rows: ir.Value,
    weights: ir.Value | None,
) -> ir.Value:
    """Gather [groups, N, …] from ``value`` [tiles, n, …]."""
    width = [size for size in out.shape[2:] if isinstance(size, int)]
    if out.name == VISUAL_TOKENS and plan.names.newline is not None:
        newline = Weights(plan.checkpoint, "", Plain(out.dtype)).plain(g, plan.names.newline)
        newline = g.op("Reshape", newline, g.constant([1, *width]))
    else:
        newline = g.constant(np.zeros([1, *width]), out.dtype)
    table = g.op("Concat", newline, g.op("Reshape", value, g.constant([-1, *width])), axis=0)
    if weights is None:
        # An index of a last axis of one is the index itself.
        return g.op("Gather", table, g.op("Squeeze", rows, g.constant([2])), axis=0)
    taken = g.cast(g.op("Gather", table, rows, axis=0), "float32")
    scale = weights if not width else g.op("Unsqueeze", weights, g.constant([3]))
    return g.cast(g.op("ReduceSum", g.op("Mul", taken, scale), g.constant([2]), keepdims=0), out.dtype)


def _of_first(g: GraphBuilder, value: ir.Value, rows: ir.Value, tokens: int) -> ir.Value:
    """Take [groups, …] of ``value`` [tiles, …], by the tile of each group's first row."""
    first = g.op("Slice", g.op("Slice", rows, *_first(g, 1)), *_first(g, 2))
    index = g.op("Reshape", first, g.constant([-1]))
    tile = g.op("Div", g.op("Sub", index, g.constant([1])), g.constant([tokens]))
    return g.op("Gather", value, tile, axis=0)


def _first(g: GraphBuilder, axis: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    return g.constant([0]), g.constant([1]), g.constant([axis])
