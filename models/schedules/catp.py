"""CATP, the part inside the language model: what the last token begins to look at, and what resembles the query.

Li et al.: "CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context Learning", AAAI
2026, arXiv 2508.07871. At layer K, 6 of 32 or 28 and 10 of 40, the score is ``max(0, A_K - A_(K-1)) + 0.6 cos(h,
mean of the query's h)`` with A the last token's attention and h the hidden states that enter the layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.fastv import last_attention, write_last_attention
from divprune_edge.models.schedules.method import (
    Indices,
    LayerGraph,
    Method,
    Values,
    View,
    Watch,
    best,
    published_shares,
)

LAYER, SHARE, WEIGHT = 6, 0.222, 0.6
OTHERS = {28: {6: SHARE}, 40: {10: SHARE}}
"""Of Qwen2.5-VL-7B and of models of 13B, as published."""
TINY = float(np.finfo(np.float32).tiny)


def likeness(view: View) -> npt.NDArray[np.float32]:
    """Return the cosine between each visual token and the mean of the text behind the image."""
    rows, query = view.of_visual(view.before), view.of("asked", view.before).mean(axis=0)
    lengths = np.sqrt((rows * rows).sum(axis=1)) * np.sqrt((query * query).sum())
    return np.asarray(rows @ query / np.maximum(lengths, np.float32(TINY)), np.float32)


def write_likeness(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    last = ops.constant([1])

    def length(x: Any) -> Any:
        return ops.op("Sqrt", ops.op("ReduceSum", ops.op("Mul", x, x), last, keepdims=1))

    rows = layer.of_visual(layer.before)
    query = ops.op("ReduceMean", layer.of("asked", layer.before), ops.constant([0]), keepdims=1)
    dots = ops.op("ReduceSum", ops.op("Mul", rows, query), last, keepdims=1)
    lengths = ops.op("Max", ops.op("Mul", length(rows), length(query)), ops.constant(TINY, "float32"))
    return ops.op("Squeeze", ops.op("Div", dots, lengths), last)


def catp_picks(values: Values, visual: int, keep: int) -> Indices:
    """Return the tokens whose attention grows most, or that resemble the query."""
    grown = np.maximum(values["attention"] - values["attention_before"], 0)
    return best(grown + np.float32(WEIGHT) * values["likeness"], keep)


CATP = Method(
    name="catp",
    citation="Li et al., CATP, AAAI 2026, arXiv 2508.07871, stage 2",
    published=published_shares({LAYER: SHARE}, OTHERS),
    picks=catp_picks,
    watches=(
        Watch("attention", last_attention, write_last_attention, offset=1),
        Watch("attention_before", last_attention, write_last_attention),
        Watch("likeness", likeness, write_likeness, offset=1),
    ),
    numbering="original",
    parameters={"weight": WEIGHT},
    deviations=(
        "One cut for all images, each with its own budget; the paper prunes the context's images together, and the "
        "query's image one layer later, by what it has in common with them.",
        "The text behind the last image stands for the query.",
        "Stage 1, before the language model, is left to a selector. The published 22.2 % are what both stages leave: "
        "behind a selector, a file has to say how many that is.",
    ),
)
"""Growing attention and likeness to the question."""
