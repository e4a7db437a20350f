"""A vision transformer as a graph: normalised pixels in, the rows of its feature out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from divprune_edge.models.activations import GATES
from divprune_edge.models.graph import Builder, Layers
from divprune_edge.models.selectors.divprune import write_selection
from divprune_edge.models.signals import ORIGINS
from divprune_edge.models.towers.signals import SignalTap
from divprune_edge.models.towers.vit import PROBE, VitSpec


def hidden_states(g: Builder, tower: Layers, image: Any, spec: VitSpec, tap: SignalTap) -> list[Any]:
    """Normalised pixels to the hidden states that the feature is chosen from, each [t, n, hidden]."""
    x = _embed(g, tower, image, spec)
    states = [tower.layer_norm(x, "pre_layrnorm", spec.norm_eps) if spec.pre_norm else x]
    with g.scope("encoder"):
        for i in range(spec.used_layers):
            if spec.cut is not None and i == spec.cut.layer:
                states[-1], tap.found[ORIGINS] = _cut(g, states[-1], spec, spec.cut.keep)
            with g.scope(f"layers.{i}"):
                states.append(_layer(g, tower, states[-1], spec, i, tap))
    return states


def feature(g: Builder, states: Sequence[Any], spec: VitSpec) -> Any:
    """Hidden states to the feature [t, n, feature width], all rows of it."""
    with g.scope("select"):
        chosen = [states[i] for i in spec.feature_states]
        return chosen[0] if len(chosen) == 1 else g.op("Concat", *chosen, axis=-1)


def visual_rows(g: Builder, x: Any, spec: VitSpec) -> Any:
    """All rows to those that the checkpoint's language model reads."""
    return _rows(g, x, 1, spec.last_rows) if spec.drops_first else x


def class_row(g: Builder, x: Any) -> Any:
    """All rows to the class token alone."""
    return _rows(g, x, 0, 1)


def _rows(g: Builder, x: Any, begin: int, end: int) -> Any:
    with g.scope("select"):
        return g.op("Slice", x, g.constant([begin]), g.constant([end]), g.constant([1]))


def _embed(g: Builder, tower: Layers, image: Any, spec: VitSpec) -> Any:
    """Patches by a strided convolution, the class token in front if there is one, learned positions added."""
    with g.scope("embeddings"):
        weights = [tower.weight(PROBE)]
        if spec.patch_bias:
            weights.append(tower.weight("embeddings.patch_embedding.bias"))
        sides = [spec.patch_size, spec.patch_size]
        with g.scope("patch_embedding"):
            patches = g.op("Conv", image, *weights, kernel_shape=sides, strides=sides)
        flat = g.op("Reshape", patches, g.constant([0, spec.hidden, spec.patches]))
        x = g.op("Transpose", flat, perm=[0, 2, 1])
        if spec.class_token:
            tiles = g.op("Shape", image, start=0, end=1)
            cls_shape = g.op("Concat", tiles, g.constant([1, spec.hidden]), axis=0)
            cls = g.op("Expand", tower.weight("embeddings.class_embedding"), cls_shape)
            x = g.op("Concat", cls, x, axis=1)
        return g.op("Add", x, tower.weight("embeddings.position_embedding.weight"))


def _cut(g: Builder, x: Any, spec: VitSpec, keep: int) -> tuple[Any, Any]:
    """Leave ``keep`` patches, those that are farthest from each other; return all rows, and the signal ``origins``."""
    with g.scope("cut"):
        patches = _rows(g, x, 1, spec.rows) if spec.class_token else x
        tiles = g.op("Shape", x, start=0, end=1)
        shape = g.op("Concat", tiles, g.constant([spec.patches]), axis=0)
        valid = g.op("Expand", g.constant([True], "bool"), shape)
        kept = write_selection(g, patches, valid, spec.patches, keep)
        rows = g.op("GatherND", patches, g.op("Unsqueeze", kept, g.constant([2])), batch_dims=1)
        if not spec.class_token:
            return rows, kept
        x = g.op("Concat", class_row(g, x), rows, axis=1)
        if spec.drops_first:
            return x, kept
        first = g.op("Mul", _rows(g, kept, 0, 1), g.constant(0))
        return x, g.op("Concat", first, g.op("Add", kept, g.constant(1)), axis=1)


def _layer(g: Builder, tower: Layers, x: Any, spec: VitSpec, index: int, tap: SignalTap) -> Any:
    name = f"encoder.layers.{index}"
    y = tower.layer_norm(x, f"{name}.layer_norm1", spec.norm_eps)
    x = g.op("Add", x, _attention(g, tower, y, spec, index, tap))
    y = tower.layer_norm(x, f"{name}.layer_norm2", spec.norm_eps)
    with g.scope("mlp"):
        y = tower.linear(y, f"{name}.mlp.fc1")
        y = tower.activation(y, spec.activation)
        y = tower.linear(y, f"{name}.mlp.fc2", gated=spec.activation in GATES)
    return g.op("Add", x, y)


def _attention(g: Builder, tower: Layers, x: Any, spec: VitSpec, index: int, tap: SignalTap) -> Any:
    """Bidirectional multi-head attention, written out where the fused operator is not there or not faster.

    ::

        x ─► q_proj · 1/√d ─► [t, h, n, d] ─┐
        x ─► k_proj ─► [t, h, d, n] ────────┴► MatMul ─► Softmax ─┐
        x ─► v_proj ─► [t, h, n, d] ──────────────────────────────┴► MatMul ─► merge heads ─► out_proj ─►
    """
    name = f"encoder.layers.{index}.self_attn"
    with g.scope("self_attn"):
        q, k, v = (tower.linear(x, f"{name}.{projection}") for projection in ("q_proj", "k_proj", "v_proj"))
        split = g.constant([0, 0, spec.heads, spec.head_dim])

        def heads(x: Any, perm: list[int]) -> Any:
            return g.op("Transpose", g.op("Reshape", x, split), perm=perm)

        if tap.listens or not tower.fuses_attention:
            scale = g.constant(np.float32(spec.head_dim) ** np.float32(-0.5), tower.dtype)
            queries, keys = g.op("Mul", heads(q, [0, 2, 1, 3]), scale), heads(k, [0, 2, 3, 1])
            values = heads(v, [0, 2, 1, 3])
            tap.see(g, index, queries, keys, values, tower.dtype)
        if tower.fuses_attention:
            y = tower.attention(q, k, v, spec.heads)
        else:
            scores = g.op("Softmax", g.op("MatMul", queries, keys), axis=-1)
            y = g.op("Transpose", g.op("MatMul", scores, values), perm=[0, 2, 1, 3])
            y = g.op("Reshape", y, g.constant([0, 0, spec.hidden]))
        return tower.linear(y, f"{name}.out_proj")
