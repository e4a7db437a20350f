"""The vision graph's signals against what they are by transformers' own queries, keys and hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.seen import Seen
from divprune_edge.export.verify.comparison import Tolerance, at_most, relative_error
from divprune_edge.manifest import Check
from divprune_edge.models.signals import ATTENTION_GLOBAL, CLS_TOKEN
from divprune_edge.processing.image_input import Groups, ImageInput

Array = npt.NDArray[Any]

_MOST = 3
"""Quarters of all tiles."""
_ASSEMBLED = 1e-5
"""Signals are float32, and a row's is the sum of four at most."""


def check_signals(
    found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: Tolerance
) -> list[Check]:
    """Return one check per signal in ``found``; errors are relative to the signal's largest value."""
    checks = []
    for name, values in found.items():
        scale = np.abs(wanted[name]).max()  # an attention is far below 1
        error = relative_error(values / scale, wanted[name] / scale)
        if name == ATTENTION_GLOBAL:
            # Rounding decides whether a patch near the threshold counts as global: some tiles may differ for that.
            pairs = zip(values, wanted[name], strict=True)
            errors = sorted(relative_error(one / scale, other / scale) for one, other in pairs)
            error = errors[_MOST * (len(errors) - 1) // 4]
        checks.append(at_most("vision", f"signal {name}", error, tolerance.error, unit="relative"))
    return checks


def check_assembled_signals(
    found: Mapping[str, Array], seen: Sequence[Seen], images: Sequence[ImageInput], tokens: int
) -> list[Check]:
    """Return one check per signal of tiles in ``found`` that each row was given the signal of its own tokens."""
    starts = np.cumsum([len(image.pixels) for image in images])[:-1]
    checks = []
    for name, values in found.items():
        scale = np.abs(values).max()
        error = max(
            relative_error(one.signals[name] / scale, _assembled(name, tiles, one.groups, tokens) / scale)
            for one, tiles in zip(seen, np.split(values, starts), strict=True)
        )
        checks.append(at_most("vision", f"rows of {name}", error, _ASSEMBLED, unit="relative"))
    return checks


def _assembled(name: str, tiles: Array, groups: Groups, tokens: int) -> Array:
    """Return what :func:`divprune_edge.export.assemble.build_assemble` says of a signal [tiles, n, …]."""
    if name == CLS_TOKEN:
        first = np.maximum(groups.rows[:, 0, 0] - 1, 0)
        return np.asarray(tiles[first // tokens])
    table = np.concatenate([np.zeros((1, *tiles.shape[2:]), tiles.dtype), *tiles])
    weights = groups.weights.reshape(*groups.weights.shape, *[1] * (tiles.ndim - 2))
    return np.asarray((weights * table[groups.rows]).sum(axis=2))
