"""Tokens and signals that every selector is tested with."""

from __future__ import annotations

from typing import Any

import numpy as np

from divprune_edge.manifest import TensorInfo
from divprune_edge.models.selectors import Selector
from divprune_edge.models.signals import CLS_TOKEN, KEYS

WIDTH, KEY_WIDTH = 16, 8
KINDS = ("random", "clustered", "duplicate", "constant", "zero rows", "signs")


def make_tokens(kind: str, n: int, random: np.random.Generator, width: int = WIDTH) -> Any:
    """Return float32 [n, width]."""
    tokens = random.normal(size=(n, width)).astype(np.float32)
    if kind == "clustered":
        centres = random.normal(size=(max(2, n // 8), width))
        tokens = (centres[random.integers(0, len(centres), n)] + 0.2 * tokens).astype(np.float32)
    if kind == "duplicate":
        tokens = tokens[random.integers(0, max(1, n // 2), n)]
    if kind == "constant":
        tokens = np.repeat(tokens[:1], n, axis=0)
    if kind == "zero rows":
        tokens[random.integers(0, n, max(1, n // 5))] = 0
    if kind == "signs":  # cosines are exact, and full of ties
        tokens = random.choice([-1.0, 1.0], (n, width)).astype(np.float32)
    return tokens


def make_signals(
    selector: Selector, n: int, random: np.random.Generator, *, flat: bool = False
) -> dict[str, Any]:
    """Return what the selector declares: attentions are multiples of 2^-14 that sum to about one."""
    signals: dict[str, Any] = {}
    for name in selector.signals:
        if name == KEYS:
            signals[name] = random.choice([-1.0, 0.5, 1.0], (n, KEY_WIDTH)).astype(np.float32)
        elif name == CLS_TOKEN:
            signals[name] = random.normal(size=(1, WIDTH)).astype(np.float32)
        else:
            shares = np.ones(n) if flat else random.gamma(0.7, size=n) + 1e-3
            signals[name] = (np.ceil(shares / shares.sum() * 2**14) / 2**14).astype(np.float32)
    return signals


def signal_infos(selector: Selector, n: int, dtype: str = "float32") -> list[TensorInfo]:
    shapes: dict[str, tuple[int, ...]] = {KEYS: (n, KEY_WIDTH), CLS_TOKEN: (1, WIDTH)}
    return [
        TensorInfo(
            name=name,
            dtype=dtype if name == CLS_TOKEN else "float32",
            shape=("tiles", *shapes.get(name, (n,))),
        )
        for name in selector.signals
    ]


def some_valid(n: int, keep: int, random: np.random.Generator) -> Any:
    valid = np.ones(n, bool)
    valid[random.permutation(n)[: random.integers(0, n - keep + 1)]] = False
    return valid
