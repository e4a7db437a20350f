"""LazyLLM as a static schedule: the last token's attention, in several cuts.

Fu et al.: "LazyLLM: Dynamic Token Pruning for Efficient Long Context LLM Inference", 2024, arXiv 2407.14057. A token
goes on where the prompt's last token attends to it, mean over heads, more than to a share of the others; each 30 % of
the layers remove 30 % of what is there.
"""

from __future__ import annotations

from divprune_edge.models.schedules.fastv import last_attention, write_last_attention
from divprune_edge.models.schedules.method import Method, Watch, best_of, published_shares

STAGES = {10: 0.7, 19: 0.7**2, 29: 0.7**3}


LAZYLLM = Method(
    name="lazyllm",
    citation="Fu et al., LazyLLM, 2024, arXiv 2407.14057",
    published=published_shares(STAGES),
    picks=best_of("attention"),
    watches=(Watch("attention", last_attention, write_last_attention),),
    numbering="original",
    deviations=(
        "Static: what left in the prefill is gone; the paper may bring tokens back at each step.",
        "Visual tokens alone leave; the paper prunes text as well.",
    ),
)
"""The last token's attention at 30, 60 and 90 % of the layers."""
