"""Controls that look at nothing: what a method has to beat at the same counts and layers."""

from __future__ import annotations

import numpy as np

from divprune_edge.models.schedules.method import Indices, Method, Values, best
from divprune_edge.models.schedules.pyramiddrop import PYRAMIDDROP
from divprune_edge.models.selectors.random import random_scores


def random_picks(values: Values, visual: int, keep: int) -> Indices:
    """Return the first ``keep`` of an order that is drawn once for each number of tokens."""
    return best(random_scores(visual), keep)


def uniform_picks(values: Values, visual: int, keep: int) -> Indices:
    """Return the first token of each of K equal parts; the selector ``uniform`` takes their middles."""
    return (np.arange(keep) * visual // keep).astype(np.int64)


RANDOM, UNIFORM = (
    Method(
        name=name,
        citation="control",
        published=PYRAMIDDROP.published,
        picks=picks,
        numbering="compact",
        deviations=("No method: the layers and counts of pyramiddrop.",),
    )
    for name, picks in (("random", random_picks), ("uniform", uniform_picks))
)
