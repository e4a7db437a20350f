"""VFlowOpt with a fixed count: the patches that the encoder's global patches attend to.

Yang et al.: "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization", ICCV 2025.
Global patches are those that receive far more attention than the mean; the importance of a patch is the attention that
it receives from them: see signal ``attention_global``. The K most important ones stay, as where an image is one tile.
"""

from __future__ import annotations

from divprune_edge.models.selectors.ranking import top_by
from divprune_edge.models.signals import ATTENTION_GLOBAL

VFLOWOPT = top_by(
    ATTENTION_GLOBAL,
    name="vflowopt",
    op_type="AttentionFromGlobal",
    citation="Yang et al., VFlowOpt, ICCV 2025, arXiv 2508.05211",
    deviations=(
        "The cut before the language model alone, without the two inside it.",
        "Nothing is recycled; of tiles the paper averages what is dropped, cell by cell.",
        "Global are patches with more than 5.4 % of all attention, the published 39.26 times the mean of 729; where "
        "there is none, all are.",
    ),
)
"""Top K by attention received from global patches."""
