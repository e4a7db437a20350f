"""Two methods in a row: the first proposes candidates, the second picks among them.

A selector takes a mask of valid tokens; what the first one keeps is the mask of the second. With class-token
attention first and max-min second, tokens that nobody looks at are out, and what is left is spread out. This is
the idea of methods that join importance and diversity, such as VisPruner (Zhang et al., ICCV 2025, arXiv
2412.01818v2), not a copy of one of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.divprune import DIVPRUNE
from divprune_edge.models.selectors.fastervlm import FASTERVLM
from divprune_edge.models.selectors.ranking import write_members
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values, require_rows

FACTOR = 2
"""The first method proposes so many candidates per token that is kept."""


def compose(first: Selector, second: Selector, op_type: str) -> Selector:
    """Return the selector ``first+second``: the second's K among the first's :data:`FACTOR` K."""

    def signals_of(selector: Selector, signals: dict[str, Any]) -> dict[str, Any]:
        return {name: signals[name] for name in selector.signals}

    def candidates_of(tokens: Tokens, valid: Valid, keep: int, signals: dict[str, Any]) -> Valid:
        require_rows(valid, keep)
        proposed = first.picks(
            tokens, valid, min(FACTOR * keep, int(valid.sum())), **signals_of(first, signals)
        )
        mask = np.zeros(valid.size, dtype=bool)
        mask[proposed] = True
        return mask

    def picks(tokens: Tokens, valid: Valid, keep: int, **signals: npt.NDArray[Any]) -> Indices:
        mask = candidates_of(tokens, valid, keep, signals)
        return second.picks(tokens, mask, keep, **signals_of(second, signals))

    def body(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, **signals: Any) -> Any:
        count = min(FACTOR * keep, candidates)
        proposed = first.body(ops, tokens, valid, candidates, count, **signals_of(first, signals))
        # Where fewer rows count than are proposed, some of these do not: they stay out.
        mask = ops.op("And", valid, write_members(ops, proposed, candidates))
        return second.body(ops, tokens, mask, candidates, keep, **signals_of(second, signals))

    def values(tokens: Tokens, valid: Valid, keep: int, **signals: npt.NDArray[Any]) -> Values:
        mask = candidates_of(tokens, valid, keep, signals)
        if second.values is None:
            raise ValueError(f"{second.name} states no values")
        inner = second.values(tokens, mask, keep, **signals_of(second, signals))
        return lambda picks: np.where(mask, inner(picks), -np.inf)

    return Selector(
        name=f"{first.name}+{second.name}",
        op_type=op_type,
        citation=f"{first.citation}, then {second.citation}",
        picks=picks,
        body=body,
        signals=tuple(dict.fromkeys([*first.signals, *second.signals])),
        parameters={"factor": FACTOR},
        values=None if second.values is None else values,
        deviations=("A composition of two methods, not a published one.",),
    )


FASTERVLM_DIVPRUNE = compose(FASTERVLM, DIVPRUNE, "ClassAttentionThenMaxMin")
"""Max-min diversity among the 2 K tokens that the class token attends to most."""
