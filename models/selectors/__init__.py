"""Every visual-token selection algorithm, once: its NumPy reference, its graph, its facts.

A new selector is one file in this folder and one line in :data:`SELECTORS`.
"""

from __future__ import annotations

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.models.selectors.base import Ops, Selector
from divprune_edge.models.selectors.divprune import DIVPRUNE

SELECTORS: dict[str, Selector] = {selector.name: selector for selector in (DIVPRUNE,)}

__all__ = ["SELECTORS", "Ops", "Selector", "find_selector"]


def find_selector(name: str) -> Selector:
    """Return the selector called ``name``.

    Raises:
        UserError: there is none; the closest name is suggested.
    """
    try:
        return SELECTORS[name]
    except KeyError:
        known = ", ".join(SELECTORS)
        raise UserError(
            f"There is no selector '{name}'{did_you_mean(name, SELECTORS)}: known are {known}."
        ) from None
