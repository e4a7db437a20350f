"""The vision encoder graph: uint8 pixels in, projected visual tokens out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.formats import Format
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.activation import GATES, activate
from divprune_edge.export.layers.linear import linear
from divprune_edge.export.layers.norm import layer_norm
from divprune_edge.export.signals import SignalTap
from divprune_edge.export.weights import Weights
from divprune_edge.manifest import Preprocessing
from divprune_edge.models.clip import ClipVisionSpec
from divprune_edge.models.llava import LlavaSpec, WeightNames
from divprune_edge.models.signals import CLS_TOKEN, signal_shape

OPSET = 20
"""The newest opset that the oldest TensorRT target reads in full."""


def build_vision_encoder(
    spec: LlavaSpec,
    names: WeightNames,
    checkpoint: Checkpoint,
    preprocessing: Preprocessing,
    format: Format,
    signals: Sequence[str] = (),
) -> ir.Model:
    """Return the model ``pixels uint8 [tiles, H, W, 3] -> visual_tokens [tiles, N, D]`` and ``signals``.

    ::

        pixels ─► Cast ─► rescale, mean, std ─► patches + CLS + positions ─► layers ─► features ─► projector ─►

    Only the layers that the feature needs are built.
    """
    g = GraphBuilder("vision_encoder")
    size = spec.vision.image_size
    pixels = g.input("pixels", "uint8", ["tiles", size, size, 3])
    tower, projector = (Weights(checkpoint, p, format) for p in (names.vision, names.projector))
    dtype = format.dtype
    tap = SignalTap(spec.vision, signals)
    with g.scope("vision_tower"):
        states = _states(g, _normalise(g, pixels, preprocessing, dtype), spec.vision, tower, tap)
        features = _features(g, states, spec.vision)
    if CLS_TOKEN in signals:
        # Projected together: over a second use of int4 weights behind a Concat, TensorRT's builder ends the process.
        projected = _project(g, features, spec, projector)
        tokens, tap.found[CLS_TOKEN] = _patches(g, projected, spec.vision), _rows(g, projected, 0, 1)
    else:
        tokens = _project(g, _patches(g, features, spec.vision), spec, projector)
    g.output(tokens, "visual_tokens", dtype, ["tiles", spec.tokens, spec.width])
    for name in signals:
        kind = dtype if name == CLS_TOKEN else "float32"
        g.output(tap.found[name], name, kind, ["tiles", *signal_shape(name, spec)])
    return g.model(max(OPSET, format.opset), domains=format.domains)


def _normalise(g: GraphBuilder, pixels: ir.Value, facts: Preprocessing, dtype: str) -> ir.Value:
    """uint8 [t, H, W, 3] to normalised [t, 3, H, W]; arithmetic in float32."""
    with g.scope("normalise"):
        x = g.op("Mul", g.cast(pixels, "float32"), g.constant(facts.rescale_factor, "float32"))
        x = g.op("Div", g.op("Sub", x, g.constant(facts.mean, "float32")), g.constant(facts.std, "float32"))
        x = g.op("Transpose", x, perm=[0, 3, 1, 2])
        return x if dtype == "float32" else g.cast(x, dtype)


def _states(
    g: GraphBuilder, image: ir.Value, spec: ClipVisionSpec, weights: Weights, tap: SignalTap
) -> list[ir.Value]:
    """Normalised pixels to the hidden states that the feature is chosen from, each [t, 1 + patches, hidden]."""
    x = _embed(g, image, spec, weights)
    states = [layer_norm(g, x, weights, "pre_layrnorm", spec.norm_eps)]
    with g.scope("encoder"):
        for i in range(spec.used_layers):
            with g.scope(f"layers.{i}"):
                states.append(_layer(g, states[-1], spec, weights, i, tap))
    return states


def _features(g: GraphBuilder, states: Sequence[ir.Value], spec: ClipVisionSpec) -> ir.Value:
    """Hidden states to the feature [t, 1 + patches, feature width], the class token in front."""
    with g.scope("select"):
        chosen = [states[i] for i in spec.feature_states]
        return chosen[0] if len(chosen) == 1 else g.op("Concat", *chosen, axis=-1)


def _patches(g: GraphBuilder, rows: ir.Value, spec: ClipVisionSpec) -> ir.Value:
    """Class token and patches to the rows that the checkpoint's language model reads."""
    return rows if spec.keep_cls else _rows(g, rows, 1, spec.patches + 1)


def _rows(g: GraphBuilder, x: ir.Value, begin: int, end: int) -> ir.Value:
    with g.scope("select"):
        return g.op("Slice", x, g.constant([begin]), g.constant([end]), g.constant([1]))


def _embed(g: GraphBuilder, image: ir.Value, spec: ClipVisionSpec, weights: Weights) -> ir.Value:
    """Patches by a strided convolution, the class token in front, learned positions added."""
    with g.scope("embeddings"):
        kernel = weights.plain(g, "embeddings.patch_embedding.weight")
        sides = [spec.patch_size, spec.patch_size]
        with g.scope("patch_embedding"):
            patches = g.op("Conv", image, kernel, kernel_shape=sides, strides=sides)
        flat = g.op("Reshape", patches, g.constant([0, spec.hidden, spec.patches]))
        tokens = g.op("Transpose", flat, perm=[0, 2, 1])
        tiles = g.op("Shape", image, start=0, end=1)
        cls_shape = g.op("Concat", tiles, g.constant([1, spec.hidden]), axis=0)
        cls = g.op("Expand", weights.plain(g, "embeddings.class_embedding"), cls_shape)
        x = g.op("Concat", cls, tokens, axis=1)
        return g.op("Add", x, weights.plain(g, "embeddings.position_embedding.weight"))


def _layer(
    g: GraphBuilder, x: ir.Value, spec: ClipVisionSpec, weights: Weights, index: int, tap: SignalTap
) -> ir.Value:
    name = f"encoder.layers.{index}"
    y = layer_norm(g, x, weights, f"{name}.layer_norm1", spec.norm_eps)
    x = g.op("Add", x, _attention(g, y, spec, weights, index, tap))
    y = layer_norm(g, x, weights, f"{name}.layer_norm2", spec.norm_eps)
    with g.scope("mlp"):
        y = linear(g, y, weights, f"{name}.mlp.fc1")
        y = activate(g, y, spec.activation, weights.dtype)
        y = linear(g, y, weights, f"{name}.mlp.fc2", gated=spec.activation in GATES)
    return g.op("Add", x, y)


def _attention(
    g: GraphBuilder, x: ir.Value, spec: ClipVisionSpec, weights: Weights, index: int, tap: SignalTap
) -> ir.Value:
    """Bidirectional multi-head attention, written out: the CPU runs it faster than the fused operator.

    ::

        x ─► q_proj · 1/√d ─► [t, h, n, d] ─┐
        x ─► k_proj ─► [t, h, d, n] ────────┴► MatMul ─► Softmax ─┐
        x ─► v_proj ─► [t, h, n, d] ──────────────────────────────┴► MatMul ─► merge heads ─► out_proj ─►
    """
    name = f"encoder.layers.{index}.self_attn"
    with g.scope("self_attn"):
        split = g.constant([0, 0, spec.heads, spec.head_dim])

        def heads(projection: str, perm: list[int]) -> ir.Value:
            y = linear(g, x, weights, f"{name}.{projection}")
            return g.op("Transpose", g.op("Reshape", y, split), perm=perm)

        scale = g.constant(np.float32(spec.head_dim) ** np.float32(-0.5), weights.dtype)
        q = g.op("Mul", heads("q_proj", [0, 2, 1, 3]), scale)
        k = heads("k_proj", [0, 2, 3, 1])
        tap.see(g, index, q, k, weights.dtype)
        scores = g.op("Softmax", g.op("MatMul", q, k), axis=-1)
        y = g.op("Transpose", g.op("MatMul", scores, heads("v_proj", [0, 2, 1, 3])), perm=[0, 2, 1, 3])
        y = g.op("Reshape", y, g.constant([0, 0, spec.hidden]))
        return linear(g, y, weights, f"{name}.out_proj")


def _project(g: GraphBuilder, x: ir.Value, spec: LlavaSpec, weights: Weights) -> ir.Value:
    with g.scope("multi_modal_projector"):
        x = linear(g, x, weights, "linear_1")
        x = activate(g, x, spec.projector.activation, weights.dtype)
        return linear(g, x, weights, "linear_2", gated=spec.projector.activation in GATES)
