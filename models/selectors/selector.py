"""What a selection algorithm is to the rest of the project."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError

Tokens = npt.NDArray[np.floating[Any]]
Valid = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]
Picks = Callable[..., Indices]
Body = Callable[..., Any]
Values = Callable[[Sequence[int]], npt.NDArray[np.float64]]
Parameter = bool | int | float | str


@dataclass(frozen=True)
class Merge:
    """What a method that merges puts in place of the picked rows.

    ``reference(tokens [N, D], valid [N], picks [K], **signals)`` returns the kept tokens [K, D];
    ``body(ops, tokens, valid, candidates, keep, picks, **signals)`` writes the same for a batch, in float32.
    """

    reference: Callable[..., Tokens]
    body: Body


@dataclass(frozen=True)
class Selector:
    """One selection algorithm with a static budget K.

    Attributes:
        name: its name in the registry.
        op_type: name of its node in the custom domain.
        citation: the paper.
        picks: ``(tokens [N, D], valid [N], keep, **signals) -> int64 [K]``, in the order of picking.
        body: ``(ops, tokens, valid, candidates, keep, **signals)`` writes the same with standard operators on
            tokens [batch, N, D] and valid [batch, N]; returns int64 [batch, K], ascending.
        signals: outputs of the vision encoder that it needs beyond the tokens, see
            :mod:`divprune_edge.models.signals`; they come to ``picks`` and ``body`` as keyword arguments.
        parameters: the defaults, as they are baked into the graph.
        deviations: where this form differs from the published method, one sentence each.
        merge: set where the kept tokens are not rows of the input. Then the picks are what each kept token
            stands for, in the order of the kept tokens, and -1 stands for the class token.
        raster: says that it goes by neighbours in a square of patches, which rows of several tiles are not.
        values: ``(tokens, valid, keep, **signals)`` returns a function of the picks so far to float64 [N], what the
            method maximises at each step; it measures how far a set is from the method's (:func:`regret_of`).
    """

    name: str
    op_type: str
    citation: str
    picks: Picks
    body: Body
    signals: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()
    merge: Merge | None = None
    raster: bool = False
    values: Callable[..., Values] | None = None

    def missing(self, signals: Collection[str]) -> tuple[str, ...]:
        """Return the signals that it needs and that are not among ``signals``."""
        return tuple(name for name in self.signals if name not in signals)

    def check_grid(self, candidates: int) -> None:
        """Check that it has a meaning for so many visual tokens.

        Raises:
            UserError: it goes by neighbours in a square, which they do not fill.
        """
        if self.raster and isqrt(candidates) ** 2 != candidates:
            raise UserError(
                f"{self.name} needs a square grid of visual tokens, but there are {candidates}: choose another "
                "selector, such as divprune, or a checkpoint whose vision_feature_select_strategy keeps the patches "
                "alone.",
                code="selector-needs-square-grid",
            )

    def refuse_tiles(self) -> None:
        """Check that it has a meaning for rows of several tiles, or of images of any size.

        Raises:
            UserError: it has none.
        """
        if self.raster:
            raise UserError(
                f"{self.name} needs a square grid of visual tokens, but images of this checkpoint are cut into tiles "
                "or may have any size: choose another selector, such as divprune.",
                code="selector-needs-square-grid",
            )

    def refuse_stacked(self) -> None:
        """Check that it leaves tokens as they are, behind which lie features that belong to each.

        Raises:
            UserError: it merges them.
        """
        if self.merge is not None:
            raise UserError(
                f"The selector '{self.name}' merges tokens, but features of the vision tower's layers belong to each "
                "of this checkpoint's: choose one that does not, such as divprune.",
                code="selector-merges",
            )

    def reference(self, tokens: Tokens, valid: Valid, keep: int, **signals: npt.NDArray[Any]) -> Indices:
        """Return the kept indices int64 [K]: ascending, or for a merging method in the order of its tokens."""
        picks = self.picks(tokens, valid, keep, **signals)
        return picks if self.merge else np.sort(picks)

    def kept(self, tokens: Tokens, valid: Valid, keep: int, **signals: npt.NDArray[Any]) -> Tokens:
        """Return the kept tokens [K, D]."""
        picks = self.reference(tokens, valid, keep, **signals)
        if self.merge is None:
            return tokens[picks]
        return self.merge.reference(tokens, valid, picks, **signals)


def require_rows(valid: Valid, keep: int) -> None:
    """Check that ``keep`` rows can be picked.

    Raises:
        UserError: fewer than ``keep`` rows are valid.
    """
    rows = int(np.count_nonzero(valid))
    if not 1 <= keep <= rows:
        raise UserError(
            f"{keep} tokens are to be kept, but only {rows} of {valid.size} rows are valid.",
            code="keep-exceeds-rows",
        )


def regret_of(
    selector: Selector, tokens: Tokens, valid: Valid, chosen: Indices, **signals: npt.NDArray[Any]
) -> float:
    """Return how far a chosen set is from what the method would have picked, 0 for an exact one.

    The method is replayed in float64, but may pick only from ``chosen``. At each step the regret is the best
    value over all rows less the best within the set; the largest one is returned.

    Raises:
        ValueError: the method states no values.
    """
    if selector.values is None:
        raise ValueError(f"{selector.name} states no values")
    values = selector.values(tokens, valid, len(chosen), **signals)
    open_rows, inside = valid.copy(), np.zeros(valid.size, dtype=bool)
    inside[chosen] = True
    picks: list[int] = []
    regret = 0.0
    for _ in range(len(chosen)):
        value = np.where(open_rows, values(picks), -np.inf)
        pick = int(np.argmax(np.where(inside, value, -np.inf)))
        regret = max(regret, float(value.max() - value[pick]))
        picks.append(pick)
        open_rows[pick] = inside[pick] = False
    return regret
