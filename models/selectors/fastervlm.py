"""FasterVLM: keep the tokens that the vision encoder's class token attends to most.

Zhang et al.: "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
2024, arXiv 2412.01818v1 (later versions are another method, VisPruner). The score is the class token's attention in
the layer that makes the feature, mean over heads; the K best are kept, in raster order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import constant_values, top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values
from divprune_edge.models.signals import CLS_ATTENTION


def attention_picks(
    tokens: Tokens, valid: Valid, keep: int, *, cls_attention: npt.NDArray[np.float32]
) -> Indices:
    """Return the K rows with the largest ``cls_attention`` [N], best first."""
    return top_picks(cls_attention, valid, keep)


def write_attention(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, cls_attention: Any
) -> Any:
    """Write the same."""
    return write_ascending(ops, write_top(ops, cls_attention, valid, keep), keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, cls_attention: npt.NDArray[np.float32]) -> Values:
    return constant_values(cls_attention)


FASTERVLM = Selector(
    name="fastervlm",
    op_type="ClassAttention",
    citation="Zhang et al., FasterVLM, 2024, arXiv 2412.01818v1",
    picks=attention_picks,
    body=write_attention,
    signals=(CLS_ATTENTION,),
    values=_values,
)
"""Top K by class-token attention."""
