"""A decoder's layers in NumPy, one at a time: for statistics of a model that need not fit into memory.

The same layer as :mod:`divprune_edge.export.language` writes. Attention is computed head by head and a block of
queries at a time, so that nothing of the size of all scores is ever there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.arrays import widen
from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.models.decoder import DecoderSpec
from divprune_edge.models.rope import RopeSpec

Array = npt.NDArray[np.float32]
Look = Callable[[int, Array], None]
"""Told of the queries from a row on, and their attention over all rows, float32 [heads, queries, n]."""

_SHARES = 1 << 24
"""Numbers of attention that are there at once, 64 MiB."""


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer in float32, by their names in it, such as ``mlp.up_proj.weight``."""

    spec: DecoderSpec
    index: int
    weights: dict[str, Array]

    def run(self, x: Array, positions: npt.NDArray[np.int64], look: Look) -> Array:
        """Return the hidden states [n, D] that leave the layer.

        Args:
            x: those that enter it.
            positions: [n], or [3, n] where a token has three.
            look: sees all attention, a block of queries after the other.
        """
        spec = self.spec
        normed = self._norm("input_layernorm", x)
        q, k, v = (self._heads(name, normed) for name in "qkv")
        if spec.qk_norm:
            q, k = self._norm("self_attn.q_norm", q), self._norm("self_attn.k_norm", k)
        angles = _angles(spec.rope, spec.head_dim, positions)
        q, k = _turned(q, angles), _turned(k, angles)
        x = x + self._linear("self_attn.o_proj", self._attend(q, k, v, look))
        normed = self._norm("post_attention_layernorm", x)
        gate = _ACTIVATIONS[spec.activation](self._linear("mlp.gate_proj", normed))
        return x + self._linear("mlp.down_proj", gate * self._linear("mlp.up_proj", normed))

    def _attend(self, q: Array, k: Array, v: Array, look: Look) -> Array:
        """Return [n, heads · head_dim] of heads [heads, n, head_dim]."""
        n, group = q.shape[1], len(q) // len(k)
        window = self.spec.window(self.index)
        keys = np.arange(n)
        out = np.empty_like(q)
        block = max(1, _SHARES // (len(q) * n))
        for first in range(0, n, block):
            queries = np.arange(first, min(first + block, n))
            seen = keys <= queries[:, None]
            if window is not None:
                seen &= keys > queries[:, None] - window
            shares = np.empty((len(q), len(queries), n), np.float32)
            for head in range(len(q)):
                scores = q[head, queries] @ k[head // group].T * np.float32(q.shape[-1] ** -0.5)
                scores[~seen] = -np.inf
                shares[head] = softmax(scores)
                out[head, queries] = shares[head] @ v[head // group]
            look(first, shares)
        return out.transpose(1, 0, 2).reshape(n, -1)

    def _heads(self, name: str, x: Array) -> Array:
        y = self._linear(f"self_attn.{name}_proj", x)
        return np.ascontiguousarray(y.reshape(len(x), -1, self.spec.head_dim).transpose(1, 0, 2))

    def _linear(self, name: str, x: Array) -> Array:
        y: Array = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return y if bias is None else y + bias

    def _norm(self, name: str, x: Array) -> Array:
        root = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.spec.norm_eps))
        return np.asarray(x / root * self.weights[f"{name}.weight"], np.float32)


def read_layer(checkpoint: Checkpoint, prefix: str, spec: DecoderSpec, index: int) -> LayerWeights:
    """Read one layer's weights; ``prefix`` is that of the decoder's names."""
    start = f"layers.{index}."
    names = [name for name in spec.parameters(1) if name.startswith(start)]
    found = {name.removeprefix(start): widen(checkpoint.read(prefix + name)) for name in names}
    return LayerWeights(spec, index, found)


def softmax(scores: Array) -> Array:
    """Return the softmax over the last axis."""
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True), np.float32)


def _angles(rope: RopeSpec, head_dim: int, positions: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Return (cosine, sine), each [n, head_dim / 2]."""
    each = np.broadcast_to(positions, (rope.axes, positions.shape[-1])).astype(np.float32)
    angles = each[rope.axis_of(head_dim)].T * rope.inverse_frequencies(head_dim)
    return np.cos(angles), np.sin(angles)


def _turned(x: Array, angles: tuple[Array, Array]) -> Array:
    """Return heads [heads, n, head_dim], turned by the rotary embedding."""
    cosine, sine = angles
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26: within 1.5e-7."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    factors = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    series = sum(np.float32(factor) * t ** (i + 1) for i, factor in enumerate(factors))
    return np.asarray(np.sign(x) * (1 - series * np.exp(-x * x)), np.float32)


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x**3)
    return np.asarray(x / 2 * (1 + np.tanh(inner)), np.float32)


_ACTIVATIONS: dict[str, Callable[[Array], Any]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x / 2 * (1 + _erf(x * np.float32(0.5**0.5))),
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * _sigmoid(np.float32(1.702) * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "linear": lambda x: x,
}
