"""Every visual-token selection algorithm, once: its NumPy reference, its graph, its facts.

A new selector is one file in this folder and one line in :data:`SELECTORS`.
"""

from __future__ import annotations

from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.models.selectors.agilepruner import AGILEPRUNER
from divprune_edge.models.selectors.aim_merge import AIM_MERGE
from divprune_edge.models.selectors.apet import APET
from divprune_edge.models.selectors.cdpruner import CDPRUNER
from divprune_edge.models.selectors.composed import FASTERVLM_DIVPRUNE
from divprune_edge.models.selectors.dart import DART
from divprune_edge.models.selectors.divprune import DIVPRUNE
from divprune_edge.models.selectors.fastervlm import FASTERVLM
from divprune_edge.models.selectors.flowcut import FLOWCUT
from divprune_edge.models.selectors.fopru import FOPRU, FOPRU_ROW
from divprune_edge.models.selectors.hiprune import HIPRUNE
from divprune_edge.models.selectors.holov import HOLOV
from divprune_edge.models.selectors.id_selection import ID_SELECTION
from divprune_edge.models.selectors.prumerge import PRUMERGE
from divprune_edge.models.selectors.quota import QUOTA
from divprune_edge.models.selectors.random import RANDOM
from divprune_edge.models.selectors.recoverable import RECOVERABLE
from divprune_edge.models.selectors.scope import SCOPE
from divprune_edge.models.selectors.selector import Merge, Selector, regret_of
from divprune_edge.models.selectors.spread import SPREAD, SPREAD_MERGE
from divprune_edge.models.selectors.todre import TODRE
from divprune_edge.models.selectors.uniform import UNIFORM
from divprune_edge.models.selectors.vflowopt import VFLOWOPT
from divprune_edge.models.selectors.visionzip import VISIONZIP
from divprune_edge.models.selectors.vtc_cls import VTC_CLS

SELECTORS: dict[str, Selector] = {
    selector.name: selector
    for selector in (
        DIVPRUNE,
        RANDOM,
        UNIFORM,
        FASTERVLM,
        VTC_CLS,
        TODRE,
        HIPRUNE,
        VISIONZIP,
        HOLOV,
        CDPRUNER,
        DART,
        FASTERVLM_DIVPRUNE,
        SCOPE,
        AGILEPRUNER,
        ID_SELECTION,
        APET,
        FOPRU,
        FOPRU_ROW,
        FLOWCUT,
        VFLOWOPT,
        AIM_MERGE,
        RECOVERABLE,
        QUOTA,
        PRUMERGE,
        SPREAD,
        SPREAD_MERGE,
    )
}

__all__ = ["SELECTORS", "Merge", "Selector", "find_selector", "regret_of"]


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
            f"There is no selector '{name}'{did_you_mean(name, SELECTORS)}: known are {known}.",
            code="selector-unknown",
        ) from None
