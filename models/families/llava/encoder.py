"""The encoder of LLaVA as a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from divprune_edge.manifest import VISUAL_TOKENS, Preprocessing
from divprune_edge.models.activations import GATES
from divprune_edge.models.families.llava.spec import PROJECTOR, TOWER, LlavaSpec
from divprune_edge.models.graph import Builder, Layers
from divprune_edge.models.signals import CLS_TOKEN
from divprune_edge.models.towers.normalise import normalise
from divprune_edge.models.towers.signals import SignalTap
from divprune_edge.models.towers.vit_graph import class_row, feature, hidden_states, visual_rows


def write_encoder(
    g: Builder,
    parts: Mapping[str, Layers],
    inputs: Mapping[str, Any],
    spec: LlavaSpec,
    preprocessing: Preprocessing,
    signals: Sequence[str],
) -> dict[str, Any]:
    """Write the encoder and return its visual tokens and ``signals``.

    ::

        pixels ─► Cast ─► rescale, mean, std ─► patches + positions ─► layers ─► features ─► projector ─►

    Only the layers that the feature needs are built.
    """
    tower = parts[TOWER]
    tap = SignalTap(spec.vision, signals)
    with g.scope(TOWER):
        image = normalise(g, inputs["pixels"], preprocessing, tower.dtype)
        features = feature(g, hidden_states(g, tower, image, spec.vision, tap), spec.vision)
    if CLS_TOKEN in signals:
        # Projected together: over a second use of int4 weights behind a Concat, TensorRT's builder ends the process.
        projected = _project(g, features, spec, parts[PROJECTOR])
        tokens, tap.found[CLS_TOKEN] = visual_rows(g, projected, spec.vision), class_row(g, projected)
    else:
        tokens = _project(g, visual_rows(g, features, spec.vision), spec, parts[PROJECTOR])
    return {VISUAL_TOKENS: tokens, **tap.found}


def _project(g: Builder, x: Any, spec: LlavaSpec, layers: Layers) -> Any:
    with g.scope(PROJECTOR):
        x = layers.linear(x, "linear_1")
        x = layers.activation(x, spec.projector.activation)
        return layers.linear(x, "linear_2", gated=spec.projector.activation in GATES)
