"""FitPrune's recipe: the least tolerance to divergence that meets a budget of operations.

Ye et al., 2024, arXiv 2409.10197. Removing tokens takes attention away: of what the text behind an image gives to its
tokens (cross) and of what these give to each other (self). With one tolerance for all layers, each layer removes the
tokens that belong to the longest tails of both whose sum is within it; the tolerance is searched for by bisection.
The paper follows the pruned forward pass at each step of the search; here one unpruned pass is measured, and what has
left counts against the tolerance of every later layer.

A cut costs a graph, so that a recipe of many small deletions is gathered into few: cuts are placed so that operations
are fewest, and none removes a token before the recipe does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.models.schedules.schedule import Cut, Schedule

STEPS = 24
"""Of the bisection: 6e-8 of tolerance."""

Array = npt.NDArray[np.float32]
Operations = Callable[[Sequence[int]], int]


@dataclass(frozen=True)
class MeasuredAttention:
    """What was measured of one prompt: attention to its m visual tokens, self and cross, float32 [layers, m]."""

    itself: Array
    cross: Array


@dataclass(frozen=True)
class Fit:
    """A schedule, the tolerance that it is of, and its share of the operations."""

    schedule: Schedule
    tolerance: float
    share: float


def fit(
    measured: Sequence[MeasuredAttention],
    visual: int,
    target: float,
    cuts: int,
    operations: Operations,
    first: int = 1,
) -> Fit:
    """Return the schedule of at most ``cuts`` cuts with the least tolerance whose operations are a share of ``target``.

    Args:
        measured: prompts, at least one.
        visual: visual tokens of an image that enter the language model, at most.
        target: share of the operations without a schedule, above 0 and below 1.
        cuts: graphs to cut the model with, at least one.
        operations: what layers cost that read so many visual tokens each; the sum of what each costs by itself.
        first: the first layer that a cut may be before.

    Raises:
        UserError: even the layers before the first cut cost more than the target.
    """
    layers = len(measured[0].cross)
    whole = operations([visual] * layers)

    def fitted(tolerance: float) -> tuple[list[int], float]:
        held = gathered(_recipe(measured, visual, tolerance, first), cuts, lambda n: operations([n]))
        return held, operations(held) / whole

    held, share = fitted(1.0)
    if share > target:
        raise UserError(
            f"--target-flops {target} cannot be met: {share:.3f} of the operations are left where all visual tokens "
            f"leave before layer {first}: ask for more, or let fewer enter with --keep.",
            code="target-flops-unreachable",
        )
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        found = fitted(middle)
        if found[1] <= target:
            high, (held, share) = middle, found
        else:
            low = middle
    return Fit(Schedule("fitprune", visual, cuts_of(held), "original"), high, share)


def cuts_of(held: Sequence[int]) -> tuple[Cut, ...]:
    """Return the cuts between layers that hold so many tokens each, falling."""
    return tuple(Cut(layer, held[layer]) for layer in range(1, len(held)) if held[layer] < held[layer - 1])


def _recipe(
    measured: Sequence[MeasuredAttention], visual: int, tolerance: float, first: int = 1
) -> npt.NDArray[np.int64]:
    """Return how many visual tokens enter each layer, int64 [layers], mean over prompts, rounded up."""
    shares = np.mean([_entering(one, tolerance, first) for one in measured], axis=0)
    return np.asarray(np.ceil(shares * visual - 1e-9), np.int64)


def _entering(measured: MeasuredAttention, tolerance: float, first: int = 1) -> npt.NDArray[np.float64]:
    """Return which share of a prompt's visual tokens enters each layer."""
    layers, m = measured.cross.shape
    alive = np.ones(m, np.bool_)
    entering = np.empty(layers)
    for layer in range(layers):
        entering[layer] = alive.sum() / m
        if layer + 1 < first:
            continue
        both = [_tail(scores[layer], alive, tolerance) for scores in (measured.cross, measured.itself)]
        alive = alive & ~(both[0] & both[1])
    return entering


def _tail(scores: Array, alive: npt.NDArray[np.bool_], tolerance: float) -> npt.NDArray[np.bool_]:
    """Return which living tokens are the longest tail without which the rest has 1 - tolerance of the sum, [m]."""
    total = scores.sum(dtype=np.float64)
    order = np.flatnonzero(alive)
    order = order[np.argsort(scores[order], kind="stable")]
    left = scores[order].sum(dtype=np.float64) - np.cumsum(scores[order], dtype=np.float64)
    leaving = order[left >= (1 - tolerance) * total - 1e-9 * total]
    found = np.zeros(alive.size, np.bool_)
    found[leaving] = True
    return found


def gathered(entering: npt.NDArray[np.int64], cuts: int, cost: Callable[[int], int]) -> list[int]:
    """Return the tokens of each layer with at most ``cuts`` changes: the cheapest that are nowhere below ``entering``.

    ``entering`` falls from layer to layer; a group of layers holds what enters its first one.
    """
    layers = len(entering)
    costs = [cost(int(n)) for n in entering]
    # best[l]: the cheapest way to run layers l to the end with so many groups, and where its first group ends.
    best: list[tuple[int, list[int]]] = [
        (costs[first] * (layers - first), [layers]) for first in range(layers)
    ]
    for _ in range(cuts):
        better = list(best)
        for first in range(layers):
            for end in range(first + 1, layers):
                total = costs[first] * (end - first) + best[end][0]
                if total < better[first][0]:
                    better[first] = (total, [end, *best[end][1]])
        best = better
    held, first = [], 0
    for end in best[0][1]:
        held += [int(entering[first])] * (end - first)
        first = end
    return held
