"""What a tower's signals are by other arithmetic: NumPy on what transformers' own tower gives, for the verification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.signals import (
    ATTENTION_GLOBAL,
    ATTENTION_OBJECT,
    ATTENTION_RECEIVED,
    CLS_ATTENTION,
    CLS_ATTENTION_SUM,
    CLS_TOKEN,
    GLOBAL_SHARE,
    INFORMATION_FLOW,
    KEYS,
)
from divprune_edge.models.towers.signals import signal_layers
from divprune_edge.models.towers.vit import VitSpec

Array = npt.NDArray[Any]
Tower = Callable[[Sequence[str]], tuple[list[Array], dict[str, Array]]]
"""Runs a tower; returns its hidden states, and what the modules named put out, each [tiles, n, hidden]."""


def expected_signals(spec: VitSpec, tower: Tower, project: Callable[[Array], Array]) -> dict[str, Array]:
    """Return every signal that the tower can give of some images, from a run over them and from the projector."""
    layers = signal_layers(spec)
    looked_at = range(layers.feature + 1) if spec.class_token else sorted({layers.object, layers.feature})
    states, outputs = tower([_module(layer, part) for layer in looked_at for part in "qkv"])
    first = int(spec.drops_first)

    def heads(x: Array) -> Array:
        tiles, n, _ = x.shape
        return x.reshape(tiles, n, spec.heads, spec.head_dim).transpose(0, 2, 1, 3)

    def attention(layer: int) -> Array:
        """Mean over heads, [tiles, n, N]."""
        q, k = heads(outputs[_module(layer, "q")]), heads(outputs[_module(layer, "k")])
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(np.float32(spec.head_dim))
        return np.asarray(_softmax(scores).mean(axis=1)[:, :, first:])

    def flow(layer: int) -> Array:
        """One layer's part of ``information_flow``, [tiles, N]."""
        v = heads(outputs[_module(layer, "v")])
        alike = _softmax(v[:, :, :1] @ v.transpose(0, 1, 3, 2)).mean(axis=1)[:, 0, first:]
        length = np.abs(v.mean(axis=1)).sum(axis=-1)[:, first:]
        seen = maps[layer][:, 0]
        shares = seen / seen.sum(axis=1, keepdims=True) + alike / alike.sum(axis=1, keepdims=True)
        return np.asarray(shares * length)

    maps = {layer: attention(layer) for layer in looked_at}
    found = {
        ATTENTION_OBJECT: maps[layers.object].mean(axis=1),
        ATTENTION_RECEIVED: maps[layers.feature].mean(axis=1),
        KEYS: heads(outputs[_module(layers.feature, "k")]).mean(axis=1)[:, first:],
        ATTENTION_GLOBAL: np.stack([_from_global(map) for map in maps[layers.feature][:, first:]]),
    }
    if spec.class_token:
        total = flow(0)
        for layer in looked_at[1:] if spec.cut is None else ():
            total = (total + flow(layer)) / 2
        # Behind a cut there are fewer rows, and what sums over it is not offered.
        summed = [maps[i][:, 0] for i in layers.summed if maps[i].shape == maps[layers.feature].shape]
        cls = np.concatenate([states[i][:, :1] for i in spec.feature_states], axis=-1)
        found |= {
            CLS_ATTENTION: maps[layers.feature][:, 0],
            CLS_ATTENTION_SUM: np.sum(summed, axis=0),
            CLS_TOKEN: project(cls),
            INFORMATION_FLOW: total,
        }
    return found


def _softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _from_global(patches: Array) -> Array:
    """Mean of the rows of a map [N, N] whose columns hold more than their share, of all where none do: [N]."""
    received = patches.sum(axis=0)
    rows = received > GLOBAL_SHARE * received.sum()
    return np.asarray(patches[rows if rows.any() else slice(None)].mean(axis=0))


def _module(layer: int, part: str) -> str:
    """The projections give queries and keys: no attention needs to be written out for them."""
    return f"encoder.layers.{layer}.self_attn.{part}_proj"
