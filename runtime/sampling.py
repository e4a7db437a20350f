"""The next id from one row of logits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.ids import Ids

if TYPE_CHECKING:
    from divprune_edge.runtime.backends import Prediction

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.intp]
_DEPTHS = (2.0, 4.0, 8.0, 16.0)
"""How far below the best, in the logarithm of the probability, ids are looked for before all of them are sorted."""
_OVERFLOW = (
    "float16 may overflow on this checkpoint, export its language model with --precision language=fp32."
)
_NOT_A_NUMBER = (
    "something is wrong in the checkpoint or with what runs it, export with --verify to find out which."
)


class Sampler:
    """Greedy at temperature 0, else nucleus sampling with its own random generator.

    Args:
        temperature: divides the logits; 0 takes the largest (the smallest id of equals, as PyTorch does).
        top_p: smallest set of most likely ids whose probabilities reach this sum (Holtzman et al. 2020).
        seed: of the random generator; None takes a fresh one.
        forbidden: ids that are never sampled.
        top_k: only so many of the most likely ids are drawn from; 0 for all.
        repetition_penalty: divides the positive logits of ids seen before and multiplies their negative ones
            (Keskar et al. 2019); 1 leaves them.
        half: the language model computes in float16, where a sum can overflow.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        forbidden: Sequence[int] = (),
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        *,
        half: bool = False,
    ) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._random = np.random.default_rng(seed) if temperature > 0 else None
        self._forbidden = Ids(forbidden).ranges
        self._top_k = top_k
        self._penalty = repetition_penalty
        self._half = half
        self._seen: set[int] = set()

    def see(self, ids: Iterable[int]) -> None:
        """Count ``ids`` as seen before, such as those of the prompt; what is sampled counts by itself."""
        self._seen.update(ids)

    def next(self, prediction: Prediction) -> int:
        """Return an id; in greedy decoding the one that the graph says, without its logits.

        Raises:
            UserError: the logits are not numbers.
        """
        if prediction.best is None or self._random is not None or self._penalty != 1:
            return self(prediction.logits)
        return prediction.best

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """Return an id for ``logits`` float32 [vocabulary].

        Raises:
            UserError: the logits are not numbers.
        """
        if self._forbidden or self._penalty != 1:
            logits = logits.copy()
        if self._penalty != 1:
            self._penalise(logits)
        for first, last in self._forbidden:
            logits[first : last + 1] = -np.inf
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise UserError(
                "The language model returned logits that are not finite: "
                + (_OVERFLOW if self._half else _NOT_A_NUMBER),
                code="logits-not-finite",
            )
        token = best if self._random is None else self._draw(logits, self._random)
        self._seen.add(token)
        return token

    def _penalise(self, logits: npt.NDArray[np.float32]) -> None:
        # Visual tokens have ids beyond the vocabulary.
        seen = np.array([i for i in self._seen if i < logits.size], dtype=np.int64)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / self._penalty, values * self._penalty)

    def _draw(self, logits: npt.NDArray[np.float32], random: np.random.Generator) -> int:
        """Draw from the likeliest ids, in the order of a stable sort, of which only what is needed is sorted."""
        scaled = (logits.astype(np.float64) - logits.max()) / self._temperature
        chance = random.random()
        if 0 < self._top_k < scaled.size:
            order = _sorted(scaled, np.partition(scaled, -self._top_k)[-self._top_k])[: self._top_k]
            probabilities = np.exp(scaled[order])
            probabilities /= probabilities.sum()
        else:
            every = np.exp(scaled)
            every /= every.sum()
            order = _head(scaled, every, self._top_p if self._top_p < 1 else chance)
            probabilities = every[order]
        reached = np.cumsum(probabilities)
        kept = 1.0 if self._top_p == 1 else reached[reached - probabilities < self._top_p][-1]
        # Below the last sum in any case, as ids of probability 0 may follow the one that reaches it.
        return int(order[np.searchsorted(reached, min(chance * kept, np.nextafter(reached[-1], 0)), "right")])


def _head(scaled: Floats, probabilities: Floats, share: float) -> Ints:
    """Return the likeliest ids in order, so many that their probabilities sum up to more than ``share``."""
    for depth in _DEPTHS:
        part = scaled >= -depth
        # By more than rounding, so that the sum in another order is more as well.
        if probabilities[part].sum() > share + 1e-9:
            return _sorted(scaled, -depth)
    return _sorted(scaled, -np.inf)


def _sorted(scaled: Floats, least: float) -> Ints:
    """Return the ids of at least ``least``, the likeliest first, and of equals the smallest id."""
    part = np.flatnonzero(scaled >= least)
    return part[np.argsort(-scaled[part], kind="stable")]
