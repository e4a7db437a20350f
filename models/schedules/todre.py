"""ToDRE, second stage: all visual tokens leave near the end of the layers.

Li et al.: "ToDRE: Visual Token Pruning via Diversity and Task Awareness", arXiv 2505.18757v2. The paper looks at about
7/8 of the layers whether text and image still attend to each other, and removes the visual tokens if not; here they
always go.
"""

from __future__ import annotations

from divprune_edge.models.schedules.method import Method, scaled
from divprune_edge.models.schedules.schedule import Cut

LAYER = 28


def _published(layers: int, visual: int) -> tuple[Cut, ...]:
    return (Cut(scaled(LAYER, layers), 0),)


TODRE_2 = Method(
    name="todre-2",
    citation="Li et al., ToDRE, 2025, arXiv 2505.18757v2, stage 2",
    published=_published,
    picks=None,
    numbering="original",
    deviations=("The layer is fixed; the paper has a threshold on attention between text and image.",),
)
"""No visual tokens from a fixed layer on."""
