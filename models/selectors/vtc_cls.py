"""VTC-CLS: keep the tokens that the class token attends to most over the last third of the encoder.

Wang et al.: "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024, arXiv 2412.05819.
The score is the class token's attention summed over layers l0 to the feature layer, mean over heads; l0 = 16 of
CLIP ViT-L's 24 layers.
"""

from __future__ import annotations

from divprune_edge.models.selectors.ranking import top_by
from divprune_edge.models.signals import CLS_ATTENTION_SUM

VTC_CLS = top_by(
    CLS_ATTENTION_SUM,
    name="vtc-cls",
    op_type="ClassAttentionSum",
    citation="Wang et al., VTC-CLS, 2024, arXiv 2412.05819",
    deviations=(
        "Tokens are gathered after the projector, not before it: the result is the same.",
        "Towers of other depths sum over the same relative depth.",
    ),
)
"""Top K by class-token attention, summed over layers."""
