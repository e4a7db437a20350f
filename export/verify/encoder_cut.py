"""Patches that leave inside the vision encoder: the reference's tower loses those that the graph's lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.seen import Seen
from divprune_edge.export.verify.comparison import Tolerance, at_most
from divprune_edge.export.verify.oracle import Oracle
from divprune_edge.manifest import Check
from divprune_edge.models.families.family import Spec
from divprune_edge.models.selectors.divprune import cosine_distances, replay_regret
from divprune_edge.models.signals import ORIGINS

Array = npt.NDArray[Any]
_SAME = 1e-4
"""Regret of two float32 evaluations of the same choice."""
_STRAY = 4
"""A distance errs as both of its ends do, and a pick by two distances."""


@contextmanager
def cut_alike(spec: Spec, oracle: Oracle, seen: Sequence[Seen]) -> Iterator[list[float]]:
    """Meanwhile let the reference's tower lose, of the images that were seen in turn, the same patches.

    Yields a list to which comes, of each of its runs on an image, how far the patches that are left are from those that
    max-min diversity would leave of the reference's own (replay regret). Where none leave, nothing changes.
    """
    regrets: list[float] = []
    cut = spec.encoder_cut
    if cut is None:
        yield regrets
        return
    turns = cycle([one.signals[ORIGINS][0] for one in seen])

    def change(states: Array) -> Array:
        return np.stack([leave(rows, next(turns)) for rows in states])

    def leave(rows: Array, origins: Array) -> Array:
        others, all_patches = np.split(rows, [cut.first])
        patches = origins[len(origins) - cut.keep :] - (cut.tokens - len(all_patches))
        distances = cosine_distances(all_patches)
        regrets.append(replay_regret(distances, np.ones(len(distances), np.bool_), patches))
        return np.concatenate([others, all_patches[patches]])

    part, _, module = cut.module.partition("/")
    with oracle.changing(part, module, change):
        yield regrets


def check_cut(regrets: Sequence[float], tolerance: Tolerance) -> list[Check]:
    """Return the check that the patches which are left are the most diverse ones; none where none leave."""
    if not regrets:
        return []
    limit = max(_SAME, _STRAY * tolerance.cosine)
    return [at_most("vision", "patches left inside", max(regrets), limit, unit="replay regret")]
