"""All rows of an image that selectors pick from, as one table, whatever the groups that they come in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.runtime.backends import Backend
from divprune_edge.runtime.vision import Candidates

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Pick = Callable[..., Indices]
"""A selector's reference, or its picks in their order: ``(tokens [N, D], valid [N], K, **signals)``."""


@dataclass(frozen=True, eq=False)
class ValidRows:
    """The rows of an image that count, of any encoder.

    Attributes:
        tokens: [m, D], in reading order: what kept indices count.
        valid: bool [groups, N]; which rows of a group count.
        reading: int64 [groups, N]; which of ``tokens`` a row is.
        groups: the inputs of a selector for each group, without the batch: visual tokens, then signals by name.
        token: values of a row that selectors look at; None: all.
    """

    tokens: Array
    valid: npt.NDArray[np.bool_]
    reading: Indices
    groups: tuple[tuple[Array, dict[str, Array]], ...]
    token: int | None = None

    @property
    def looked_at(self) -> Array:
        """What selectors look at of the tokens."""
        return self.tokens[:, : self.token]

    def picked(self, pick: Pick, keep: int) -> list[Indices]:
        """Return what is picked of each group, -1 for none of the rows; all of one that has no more than K."""
        found = []
        for (tokens, signals), valid, reading in zip(self.groups, self.valid, self.reading, strict=True):
            few = reading[: valid.sum()]
            if len(few) > keep:
                picks = pick(tokens[:, : self.token], valid, keep, **signals)
                few = np.where(picks < 0, -1, reading[picks])
            found.append(few)
        return found


def rows_of(
    backend: Backend, candidates: Candidates, signals: Sequence[str] = (), token: int | None = None
) -> ValidRows:
    """Return the rows of the only image, on the host."""
    tokens = backend.to_host(candidates.encoded.tokens)
    given = {name: backend.to_host(candidates.encoded.outputs[name]) for name in signals}
    valid, reading = candidates.valid, candidates.reading
    return ValidRows(
        tokens[valid][np.argsort(reading[valid])],
        valid,
        reading,
        tuple((tokens[i], {name: value[i] for name, value in given.items()}) for i in range(len(valid))),
        token,
    )
