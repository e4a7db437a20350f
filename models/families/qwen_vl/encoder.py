"""The vision tower of Qwen2.5-VL and Qwen3-VL as a graph, for images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from divprune_edge.manifest import VISUAL_TOKENS, Preprocessing
from divprune_edge.models.activations import GATES
from divprune_edge.models.families.qwen_vl.spec import (
    DEEPSTACK_MERGERS,
    MERGER,
    NORM_EPS,
    TOWER,
    QwenVisionSpec,
)
from divprune_edge.models.graph import Builder, Layers
from divprune_edge.models.rope import RopeSpec
from divprune_edge.processing.patches import AXES, PIXELS, PLACE_ROWS, PLACE_WEIGHTS, WINDOW_OF, WINDOWS

_MASKED = -3e4
"""Added to the score of a patch that is none: far below any other, and a number in float16 as well."""


def write_qwen_encoder(
    g: Builder,
    layers: Layers,
    inputs: Mapping[str, Any],
    spec: QwenVisionSpec,
    preprocessing: Preprocessing,
) -> dict[str, Any]:
    """Write the tower and its mergers; return the visual tokens and what is beside them, each [frames, rows, D].

    ::

        pixels ─► Cast ─► rescale, mean, std ─► patch embedding ─► + places ─► blocks ─► merger ─► visual_tokens
                                                                         │
                                                                         └► a merger each ─► deepstack.0 …

    ``inputs`` are those of :func:`divprune_edge.models.families.qwen_vl.inputs.encoder_inputs`, by name.
    """
    found = {}
    with g.scope(TOWER):
        x = _embed(g, layers, _normalise(g, inputs[PIXELS], spec, preprocessing, layers.dtype), spec)
        if spec.positions is not None:
            x = g.op("Add", x, _places(g, layers, inputs))
        rotary = _Rotary(g, inputs[AXES], spec, layers.dtype)
        windows = None if spec.window is None else _Windows(g, x, inputs, spec, layers.dtype)
        for i in range(spec.layers):
            with g.scope(f"blocks.{i}"):
                x = _block(g, layers, x, spec, i, rotary, windows if spec.in_windows(i) else None)
            if i in spec.deepstack:
                at = spec.deepstack.index(i)
                found[spec.beside[at]] = _merge(g, layers, x, spec, f"{DEEPSTACK_MERGERS}.{at}")
        return {VISUAL_TOKENS: _merge(g, layers, x, spec, MERGER), **found}


def _normalise(g: Builder, pixels: Any, spec: QwenVisionSpec, facts: Preprocessing, dtype: str) -> Any:
    """uint8 patches, a channel after the other, to normalised ones; arithmetic in float32."""
    with g.scope("normalise"):
        mean, std = (np.repeat(values, spec.patch_values // 3) for values in (facts.mean, facts.std))
        x = g.op("Mul", g.cast(pixels, "float32"), g.constant(facts.rescale_factor, "float32"))
        x = g.op("Div", g.op("Sub", x, g.constant(mean, "float32")), g.constant(std, "float32"))
        return x if dtype == "float32" else g.cast(x, dtype)


def _embed(g: Builder, layers: Layers, x: Any, spec: QwenVisionSpec) -> Any:
    """A convolution whose kernel is as large as a patch is one product with it: [frames, n, hidden]."""
    with g.scope("patch_embed"), g.scope("proj"):
        kernel = g.op("Reshape", layers.weight("patch_embed.proj.weight"), g.constant([0, -1]))
        x = g.op("MatMul", x, g.op("Transpose", kernel, perm=[1, 0]))
        return g.op("Add", x, layers.weight("patch_embed.proj.bias")) if spec.patch_bias else x


def _places(g: Builder, layers: Layers, inputs: Mapping[str, Any]) -> Any:
    """Learned positions between four places each, summed in float32, one after the other to save memory.

    ::

        place_rows [n, 4] ─► column i ─► Gather(table) ─► · place_weights[:, i] ─► + … ─► [n, hidden]
    """
    with g.scope("pos_embed"):
        table, total = layers.weight("pos_embed.weight"), None
        for corner in range(4):
            rows = g.op("Gather", inputs[PLACE_ROWS], g.constant(corner), axis=1)
            weights = g.op("Gather", inputs[PLACE_WEIGHTS], g.constant([corner]), axis=1)
            part = g.op("Mul", _single(g, g.op("Gather", table, rows, axis=0), layers.dtype), weights)
            total = part if total is None else g.op("Add", total, part)
        return total if layers.dtype == "float32" else g.cast(total, layers.dtype)


def _block(
    g: Builder,
    layers: Layers,
    x: Any,
    spec: QwenVisionSpec,
    index: int,
    rotary: _Rotary,
    windows: _Windows | None,
) -> Any:
    name = f"blocks.{index}"
    y = _norm(layers, x, spec, f"{name}.norm1")
    x = g.op("Add", x, _attention(g, layers, y, spec, f"{name}.attn", rotary, windows))
    y = _norm(layers, x, spec, f"{name}.norm2")
    with g.scope("mlp"):
        return g.op("Add", x, _mlp(g, layers, y, spec, f"{name}.mlp"))


def _norm(layers: Layers, x: Any, spec: QwenVisionSpec, name: str) -> Any:
    norm = layers.rms_norm if spec.rms_norm else layers.layer_norm
    return norm(x, name, NORM_EPS)


def _mlp(g: Builder, layers: Layers, x: Any, spec: QwenVisionSpec, name: str) -> Any:
    if spec.gated:
        gate = layers.activation(layers.linear(x, f"{name}.gate_proj"), spec.activation)
        return layers.linear(g.op("Mul", gate, layers.linear(x, f"{name}.up_proj")), f"{name}.down_proj")
    y = layers.activation(layers.linear(x, f"{name}.linear_fc1"), spec.activation)
    return layers.linear(y, f"{name}.linear_fc2", gated=spec.activation in GATES)


def _attention(
    g: Builder,
    layers: Layers,
    x: Any,
    spec: QwenVisionSpec,
    name: str,
    rotary: _Rotary,
    windows: _Windows | None,
) -> Any:
    """Bidirectional multi-head attention among a frame's patches, or among those of a window.

    ::

        x ─► qkv ─► Split ─┬ q, k ─► rotary ─┬ q ─► · 1/√d ─► [t, h, n, d] ─┐
                           │                 └ k ─► [t, h, d, n] ───────────┴► MatMul ─► Softmax ─┐
                           └ v ─► [t, h, n, d] ───────────────────────────────────────────────────┴► MatMul ─► proj ─►

    In windows, t counts the windows of all frames and n is the patches of one.
    """
    heads, width = spec.heads, spec.head_dim
    with g.scope("attn"):
        sizes = g.constant([2 * spec.hidden, spec.hidden])
        both, v = g.ops("Split", layers.linear(x, f"{name}.qkv"), sizes, outputs=2, axis=-1)
        both = rotary(g, g.op("Reshape", both, g.constant([0, 0, 2 * heads, width])))
        v = g.op("Reshape", v, g.constant([0, 0, heads, width]))
        if windows is not None:
            both, v = windows.cut(g, both, 2 * heads), windows.cut(g, v, heads)
        q, k = g.ops("Split", both, g.constant([heads, heads]), outputs=2, axis=2)
        attend = _fused if layers.fuses_attention else _written_out
        y = attend(g, layers, q, k, v, spec, windows)
        if windows is not None:
            y = windows.join(g, y)
        return layers.linear(y, f"{name}.proj")


def _fused(
    g: Builder, layers: Layers, q: Any, k: Any, v: Any, spec: QwenVisionSpec, windows: _Windows | None
) -> Any:
    """Attention of heads [t, n, h, d] in one operator, as [t, n, h · d]."""
    flat = g.constant([0, 0, spec.hidden])
    mask = None if windows is None else windows.whole_mask(g)
    q, k, v = (g.op("Reshape", x, flat) for x in (q, k, v))
    return layers.attention(q, k, v, spec.heads, mask)


def _written_out(
    g: Builder, layers: Layers, q: Any, k: Any, v: Any, spec: QwenVisionSpec, windows: _Windows | None
) -> Any:
    """Attention of heads [t, n, h, d], as [t, n, h · d]."""
    scale = g.constant(np.float32(spec.head_dim) ** np.float32(-0.5), layers.dtype)
    q = g.op("Mul", g.op("Transpose", q, perm=[0, 2, 1, 3]), scale)
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 2, 3, 1]))
    if windows is not None:
        scores = g.op("Add", scores, windows.mask)
    y = g.op("MatMul", g.op("Softmax", scores, axis=-1), g.op("Transpose", v, perm=[0, 2, 1, 3]))
    return g.op("Reshape", g.op("Transpose", y, perm=[0, 2, 1, 3]), g.constant([0, 0, spec.hidden]))


class _Rotary:
    """Turns heads by a patch's row in the first half of their angles, by its column in the second; in float32.

    ::

        axes [n, 2] ─► · inverse frequencies ─► angles [n, d / 2] ─► Cos, Sin
        x ─► Split ─┬ a ─► a · cos - b · sin ─┐
                    └ b ─► b · cos + a · sin ─┴► Concat ─►
    """

    def __init__(self, g: Builder, axes: Any, spec: QwenVisionSpec, dtype: str) -> None:
        self._half, self._dtype = spec.head_dim // 2, dtype
        with g.scope("rotary_pos_emb"):
            each = g.op("Unsqueeze", g.cast(axes, "float32"), g.constant([2]))
            frequencies = RopeSpec(spec.theta).inverse_frequencies(self._half)
            angles = g.op("Mul", each, g.constant(frequencies, "float32"))
            angles = g.op("Reshape", angles, g.constant([0, 1, self._half]))
            self._cosine, self._sine = g.op("Cos", angles), g.op("Sin", angles)

    def __call__(self, g: Builder, x: Any) -> Any:
        """Return heads [frames, n, heads, d], turned."""
        with g.scope("rotary"):
            wide = _single(g, x, self._dtype)
            a, b = g.ops("Split", wide, g.constant([self._half, self._half]), outputs=2, axis=-1)
            first = g.op("Sub", g.op("Mul", a, self._cosine), g.op("Mul", b, self._sine))
            second = g.op("Add", g.op("Mul", b, self._cosine), g.op("Mul", a, self._sine))
            turned = g.op("Concat", first, second, axis=-1)
            return turned if self._dtype == "float32" else g.cast(turned, self._dtype)


class _Windows:
    """Cuts the patches of frames into windows and joins them again; what pads a window is masked.

    ::

        windows [w, most] ─► Min(n - 1) ─► rows
        windows ─► < n ─► 0 or mask ─► Expand ─► [frames · w, 1, 1, most]
    """

    def __init__(
        self, g: Builder, x: Any, inputs: Mapping[str, Any], spec: QwenVisionSpec, dtype: str
    ) -> None:
        self._spec, self._window_of = spec, inputs[WINDOW_OF]
        with g.scope("windows"):
            n = g.op("Shape", inputs[WINDOW_OF], start=0, end=1)
            self._rows = g.op("Min", inputs[WINDOWS], g.op("Sub", n, g.constant([1])))
            frames = g.op("Shape", x, start=0, end=1)
            self._joined = g.op("Concat", frames, g.constant([-1, spec.hidden]), axis=0)
            real = g.op("Less", inputs[WINDOWS], n)
            mask = g.op("Where", real, g.constant(0.0, dtype), g.constant(_MASKED, dtype))
            mask = g.op("Expand", mask, g.op("Concat", frames, g.constant([1, 1]), axis=0))
            self.mask = g.op("Reshape", mask, g.constant([-1, 1, 1, spec.window_patches]))

    def whole_mask(self, g: Builder) -> Any:
        """Return the mask with a row for each query, as the fused operator wants it."""
        most = self._spec.window_patches
        return g.op("Expand", self.mask, g.constant([1, 1, most, most]))

    def cut(self, g: Builder, x: Any, heads: int) -> Any:
        """[frames, n, heads, d] to [frames · w, most, heads, d]."""
        cut = g.op("Gather", x, self._rows, axis=1)
        return g.op("Reshape", cut, g.constant([-1, self._spec.window_patches, heads, self._spec.head_dim]))

    def join(self, g: Builder, x: Any) -> Any:
        """[frames · w, most, hidden] to [frames, n, hidden]."""
        return g.op("Gather", g.op("Reshape", x, self._joined), self._window_of, axis=1)


def _merge(g: Builder, layers: Layers, x: Any, spec: QwenVisionSpec, name: str) -> Any:
    """The patches of a visual token side by side, normalised each by itself before, or together after that.

    ::

        [t, n, h] ─► norm ─► [t, rows, merge² h] ─────────► linear ─► GELU ─► linear ─► [t, rows, D]
        [t, n, h] ─────────► [t, rows, merge² h] ─► norm ─► linear ─► GELU ─► linear ─►   (deepstack)
    """
    norm, first, second = spec.merger_layers(name)
    with g.scope(name):
        x = _norm(layers, x, spec, norm) if name == MERGER else x
        x = g.op("Reshape", x, g.constant([0, -1, spec.merged]))
        x = x if name == MERGER else _norm(layers, x, spec, norm)
        within = first.removeprefix(f"{name}.").rpartition(".")[0]
        with g.scope(within) if within else nullcontext():
            x = layers.activation(layers.linear(x, first), "gelu")
            return layers.linear(x, second, gated=True)


def _single(g: Builder, x: Any, dtype: str) -> Any:
    return x if dtype == "float32" else g.cast(x, "float32")
