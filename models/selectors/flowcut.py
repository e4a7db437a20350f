"""FlowCut: keep what most information flowed from, layer after layer of the encoder.

Tong et al.: "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models", 2025. In each
layer a patch scores by the class token's attention to it, the similarity of their values and the length of its own:
see signal ``information_flow``. The score is averaged over the layers, each counting twice the one before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import constant_values, top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values
from divprune_edge.models.signals import INFORMATION_FLOW

Array = npt.NDArray[np.float32]


def flowcut_picks(tokens: Tokens, valid: Valid, keep: int, *, information_flow: Array) -> Indices:
    """Return the K rows with the largest ``information_flow`` [N], best first."""
    return top_picks(information_flow, valid, keep)


def write_flowcut(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, information_flow: Any
) -> Any:
    """Write the same."""
    return write_ascending(ops, write_top(ops, information_flow, valid, keep), keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, information_flow: Array) -> Values:
    return constant_values(information_flow)


FLOWCUT = Selector(
    name="flowcut",
    op_type="InformationFlow",
    citation="Tong et al., FlowCut, 2025, arXiv 2505.19536",
    picks=flowcut_picks,
    body=write_flowcut,
    signals=(INFORMATION_FLOW,),
    deviations=(
        "All at once behind the encoder: the paper drops patches every second layer inside it, as many as the entropy "
        "of its attention says, so that later layers see fewer.",
        "The layer that makes the feature counts as well: the released code ends one before it.",
    ),
    values=_values,
)
"""Top K by attention, values and their length over all layers."""
