"""VTC-CLS: keep the tokens that the class token attends to most over the last third of the encoder.

Wang et al.: "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024, arXiv 2412.05819.
The score is the class token's attention summed over layers l0 to the feature layer, mean over heads; l0 = 16 of
CLIP ViT-L's 24 layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import constant_values, top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values
from divprune_edge.models.signals import CLS_ATTENTION_SUM


def attention_sum_picks(
    tokens: Tokens, valid: Valid, keep: int, *, cls_attention_sum: npt.NDArray[np.float32]
) -> Indices:
    """Return the K rows with the largest ``cls_attention_sum`` [N], best first."""
    return top_picks(cls_attention_sum, valid, keep)


def write_attention_sum(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention_sum: Any
) -> Any:
    """Write the same."""
    return write_ascending(ops, write_top(ops, cls_attention_sum, valid, keep), keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, cls_attention_sum: npt.NDArray[np.float32]) -> Values:
    return constant_values(cls_attention_sum)


VTC_CLS = Selector(
    name="vtc-cls",
    op_type="ClassAttentionSum",
    citation="Wang et al., VTC-CLS, 2024, arXiv 2412.05819",
    picks=attention_sum_picks,
    body=write_attention_sum,
    signals=(CLS_ATTENTION_SUM,),
    deviations=(
        "The tokens are gathered after the projector, not before it: the result is the same.",
        "Towers of another depth than 24 layers sum over the same relative depth.",
    ),
    values=_values,
)
"""Top K by class-token attention, summed over layers."""
