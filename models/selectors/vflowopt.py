"""VFlowOpt with a fixed count: the patches that the encoder's global patches attend to.

Yang et al.: "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization", ICCV 2025.
Global patches are those that receive far more attention than the mean; the importance of a patch is the attention that
it receives from them: see signal ``attention_global``. The K most important ones stay, as where an image is one tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import constant_values, top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values
from divprune_edge.models.signals import ATTENTION_GLOBAL

Array = npt.NDArray[np.float32]


def vflowopt_picks(tokens: Tokens, valid: Valid, keep: int, *, attention_global: Array) -> Indices:
    """Return the K rows with the largest ``attention_global`` [N], best first."""
    return top_picks(attention_global, valid, keep)


def write_vflowopt(
    ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int, *, attention_global: Any
) -> Any:
    """Write the same."""
    return write_ascending(ops, write_top(ops, attention_global, valid, keep), keep)


def _values(tokens: Tokens, valid: Valid, keep: int, *, attention_global: Array) -> Values:
    return constant_values(attention_global)


VFLOWOPT = Selector(
    name="vflowopt",
    op_type="AttentionFromGlobal",
    citation="Yang et al., VFlowOpt, ICCV 2025, arXiv 2508.05211",
    picks=vflowopt_picks,
    body=write_vflowopt,
    signals=(ATTENTION_GLOBAL,),
    deviations=(
        "The cut before the language model alone, without the two inside it.",
        "Nothing is recycled: of images in several tiles the paper averages what is dropped, cell by cell.",
        "Global are patches with 5.4 % of all attention, the published 39.26 times the mean of 729 patches; where "
        "there is none, all patches count.",
    ),
    values=_values,
)
"""Top K by attention received from global patches."""
