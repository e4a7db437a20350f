"""PyramidDrop: halve the visual tokens after each quarter of the layers.

Xing et al.: "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
CVPR 2025, arXiv 2410.17247. Before layers 8, 16 and 24 of 32 stay a half, a quarter and an eighth of the visual tokens:
those to which the last instruction token attends most, by the queries and keys of the layer that follows, mean over
heads after the softmax. Positions are counted anew after each cut.
"""

from __future__ import annotations

from divprune_edge.models.schedules.fastv import last_attention, write_last_attention
from divprune_edge.models.schedules.method import Method, Watch, best_of, published_shares

STAGES = {8: 0.5, 16: 0.25, 24: 0.125}


PYRAMIDDROP = Method(
    name="pyramiddrop",
    citation="Xing et al., CVPR 2025, arXiv 2410.17247",
    published=published_shares(STAGES),
    picks=best_of("attention"),
    watches=(Watch("attention", last_attention, write_last_attention, offset=1),),
    numbering="compact",
    deviations=(
        "The last row of the prompt stands for the last instruction token, as in the released code.",
    ),
)
"""The last token's attention in the layer at the cut."""
