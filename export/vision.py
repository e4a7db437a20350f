"""The vision encoder graph: uint8 pixels in, projected visual tokens out."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from divprune_edge.export.formats import Format
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.layer_builder import LayerBuilder
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.weights import Weights
from divprune_edge.manifest import VISUAL_TOKENS
from divprune_edge.models.signals import CLS_TOKEN, ORIGINS
from divprune_edge.models.tiles import row_width
from divprune_edge.processing.patches import ROWS

OPSET = 20
"""The newest opset that the oldest TensorRT target reads in full."""


def build_vision_encoder(plan: ExportPlan, format: Format, signals: Sequence[str] = ()) -> ir.Model:
    """Return the model ``pixels uint8 [tiles, …] -> visual_tokens [tiles, n, D]`` and ``signals``.

    What lies between and what else it takes, the plan's family says.
    """
    spec = plan.spec
    g = GraphBuilder("vision_encoder")
    inputs = {one.name: g.input(one.name, one.dtype, list(one.shape)) for one in spec.inputs}
    parts = {
        part: LayerBuilder(g, Weights(plan.checkpoint, prefix, format), plan.fuses_encoder)
        for part, prefix in plan.names.encoder.items()
    }
    values = plan.family.encoder(g, parts, inputs, spec, plan.preprocessing, signals)
    tokens = spec.tokens if spec.image_size is not None else ROWS
    tiles = spec.inputs[0].shape[0]
    g.output(values[VISUAL_TOKENS], VISUAL_TOKENS, format.dtype, [tiles, tokens, row_width(spec)])
    shapes = spec.signal_shapes()
    for name in signals:
        kind = {CLS_TOKEN: format.dtype, ORIGINS: "int64"}.get(name, "float32")
        g.output(values[name], name, kind, [tiles, *shapes[name]])
    domains = {*format.domains, *(plan.dialect.domains if plan.fuses_encoder else ())}
    return g.model(max(OPSET, format.opset), domains=sorted(domains))
