"""The vision graph's signals against transformers' own queries, keys and hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.comparison import Tolerance, at_most, relative_error
from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.manifest import Check
from divprune_edge.models.clip import ClipVisionSpec
from divprune_edge.models.signals import (
    ATTENTION_OBJECT,
    ATTENTION_RECEIVED,
    CLS_ATTENTION,
    CLS_ATTENTION_SUM,
    CLS_TOKEN,
    KEYS,
    signal_layers,
)

Array = npt.NDArray[Any]


def check_signals(
    found: Mapping[str, Array], oracle: Oracle, spec: ClipVisionSpec, images: Array, tolerance: Tolerance
) -> list[Check]:
    """Return one check per signal in ``found``; errors are relative to the signal's largest value."""
    if not found:
        return []
    wanted = expected_signals(oracle, spec, images)
    checks = []
    for name, values in found.items():
        scale = np.abs(wanted[name]).max()  # an attention is far below 1
        error = relative_error(values / scale, wanted[name] / scale)
        checks.append(at_most("vision", f"signal {name}", error, tolerance.error, unit="relative"))
    return checks


def expected_signals(oracle: Oracle, spec: ClipVisionSpec, images: Array) -> dict[str, Array]:
    """Return every signal of uint8 ``images`` [tiles, H, W, 3], computed from what transformers computes."""
    layers = signal_layers(spec)
    tower = oracle.tower(images, sorted({layers.object, *layers.summed}))
    first = 0 if spec.keep_cls else 1

    def heads(x: Array) -> Array:
        tiles, n, _ = x.shape
        return x.reshape(tiles, n, spec.heads, spec.head_dim).transpose(0, 2, 1, 3)

    def attention(layer: int) -> Array:
        """Mean over heads, [tiles, n, N]."""
        q, k = heads(tower.queries[layer]), heads(tower.keys[layer])
        scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(np.float32(spec.head_dim))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
        return np.asarray(weights.mean(axis=1)[:, :, first:])

    maps = {layer: attention(layer) for layer in tower.queries}
    cls = np.concatenate([tower.states[i][:, :1] for i in spec.feature_states], axis=-1)
    return {
        CLS_ATTENTION: maps[layers.feature][:, 0],
        CLS_ATTENTION_SUM: np.sum([maps[i][:, 0] for i in layers.summed], axis=0),
        ATTENTION_OBJECT: maps[layers.object].mean(axis=1),
        ATTENTION_RECEIVED: maps[layers.feature].mean(axis=1),
        KEYS: heads(tower.keys[layers.feature]).mean(axis=1)[:, first:],
        CLS_TOKEN: oracle.project(cls),
    }
