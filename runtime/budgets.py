"""As many visual tokens as an image needs: the smallest of a bundle's budgets that covers it.

How well a kept set covers an image is its *coverage radius*: the largest distance ``1 - cos`` of a dropped visual token
to the nearest kept one. Images with much on them have a larger one at the same number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import UNPRUNED, SelectorInfo
from divprune_edge.runtime.bundle import Bundle

AUTO = "auto"


@dataclass(frozen=True)
class Budgets:
    """One selector at several budgets, the smallest first, and the coverage radius that is small enough."""

    selectors: tuple[SelectorInfo, ...]
    radius: float

    @property
    def keep(self) -> int:
        """The largest K."""
        return self.largest.keep

    @property
    def signals(self) -> tuple[str, ...]:
        """What the selector needs of the encoder beyond the tokens."""
        return self.largest.signals

    @property
    def largest(self) -> SelectorInfo:
        """What is taken where no budget covers an image."""
        return self.selectors[-1]


def check_auto(budget: str | None, radius: float | None) -> None:
    """Check that a budget is ``auto`` if one is given, and that no radius is without it.

    Raises:
        UserError: either.
    """
    if budget not in (None, AUTO):
        raise UserError(f"The budget is '{budget}', expected auto.", code="option-invalid")
    if budget is None and radius is not None:
        raise UserError(
            f"The radius {radius} says when a budget is enough: add --budget auto.",
            code="radius-without-budget",
        )


def budgets_of(bundle: Bundle, selector: str | None, radius: float | None) -> Budgets:
    """Return the budgets that a bundle has of a selector.

    Args:
        bundle: the opened bundle.
        selector: an algorithm; None takes that of the bundle's default selector.
        radius: the coverage radius, above 0 and at most 2.

    Raises:
        UserError: there are no two budgets to choose from, or no radius.
    """
    entries = bundle.manifest.selectors
    by_id = {entry.id: entry.name for entry in entries}
    name = by_id.get(selector or bundle.manifest.default_selector, selector)
    found = sorted((entry for entry in entries if entry.name == name), key=lambda entry: entry.keep)
    if name in (None, UNPRUNED) or len(found) < 2:
        there = ", ".join(entry.id for entry in found) or "none"
        raise UserError(
            f"--budget auto needs several budgets of a selector to choose from, but the bundle has {there} of "
            f"'{name or UNPRUNED}': add more with 'python -m export selectors {bundle.path} --selectors "
            f"{name if found else 'divprune'} --keep K,K,…'.",
            code="budget-auto-needs-budgets",
        )
    if radius is None:
        raise UserError(
            "--budget auto needs --radius, the coverage radius that is small enough: learn one by 'python -m runtime "
            f"evaluate {bundle.path} --data FOLDER --learn-radius 0.95'.",
            code="budget-auto-needs-radius",
        )
    if not 0 < radius <= 2:
        raise UserError(
            f"--radius is {radius}, expected a distance 1 - cos: above 0, at most 2.", code="option-invalid"
        )
    return Budgets(tuple(found), radius)


def coverage_radius(tokens: npt.NDArray[np.floating[Any]], kept: npt.NDArray[np.int64]) -> float:
    """Return the largest ``1 - cos`` of a dropped row of [N, D] to its nearest kept one, 0 where none is dropped.

    ``kept`` int64 [K]; negative ones stand for no visual token. 2, the largest distance there is, where none is kept.
    """
    rows = kept[kept >= 0]
    dropped = np.setdiff1d(np.arange(len(tokens)), rows)
    if not len(dropped) or not len(rows):
        return 2.0 if len(dropped) else 0.0
    x = np.asarray(tokens, dtype=np.float32)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return max(0.0, float(1 - (unit[dropped] @ unit[rows].T).max(axis=1).min()))
