"""FasterVLM: keep the tokens that the vision encoder's class token attends to most.

Zhang et al.: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
2024, arXiv 2412.01818v1 (later versions are another method, VisPruner). The score is the class token's attention in
the layer that makes the feature, mean over heads; the K best are kept, in raster order.
"""

from __future__ import annotations

from divprune_edge.models.selectors.ranking import top_by
from divprune_edge.models.signals import CLS_ATTENTION

FASTERVLM = top_by(
    CLS_ATTENTION,
    name="fastervlm",
    op_type="ClassAttention",
    citation="Zhang et al., FasterVLM, 2024, arXiv 2412.01818v1",
)
"""Top K by class-token attention."""
