"""FlowCut: keep what most information flowed from, layer after layer of the encoder.

Tong et al.: "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models", 2025. In each
layer a patch scores by the class token's attention to it, the similarity of their values and the length of its own:
see signal ``information_flow``. The score is averaged over the layers, each counting twice the one before it.
"""

from __future__ import annotations

from divprune_edge.models.selectors.ranking import top_by
from divprune_edge.models.signals import INFORMATION_FLOW

FLOWCUT = top_by(
    INFORMATION_FLOW,
    name="flowcut",
    op_type="InformationFlow",
    citation="Tong et al., FlowCut, 2025, arXiv 2505.19536",
    deviations=(
        "All at once behind the encoder; the paper drops patches in every second layer, as many as the entropy of "
        "attention says.",
        "The feature layer counts as well; the released code ends one before it.",
    ),
)
"""Top K by attention, values and their length over all layers."""
