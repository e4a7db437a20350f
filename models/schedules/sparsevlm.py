"""SparseVLM without its recycling: attention of the words that the image resembles.

Zhang et al.: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025, arXiv
2410.04417. Raters are words behind the image: with the softmax over words of ``visual · word``, mean over visual
tokens, those above the mean. A visual token's score is the raters' attention to it, mean over heads. Behind layers 3,
7 and 16 of 32 stay 300, 200 and 110 of 576 (the setting called 192).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch, best_of, published_shares

STAGES = {3: 300 / 576, 7: 200 / 576, 16: 110 / 576}


def raters_attention(view: View) -> npt.NDArray[np.float32]:
    """Return the raters' attention to each visual token, mean over raters and heads."""
    likeness = view.of_visual(view.before) @ view.of("asked", view.before).T
    shares = np.exp(likeness - likeness.max(axis=1, keepdims=True))
    shares = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    raters = shares > shares.mean()
    if not raters.any():
        raters[:] = True
    return np.asarray(view.shares("asked").mean(axis=0)[raters].mean(axis=0), np.float32)


def write_raters_attention(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same: raters are rows of a weight of 1, the others of 0."""
    first, one = ops.constant([0]), ops.constant(1.0, "float32")
    words = ops.op("Transpose", layer.of("asked", layer.before), perm=[1, 0])
    likeness = ops.op("MatMul", layer.of_visual(layer.before), words)
    shares = ops.op("ReduceMean", ops.op("Softmax", likeness, axis=1), first, keepdims=1)
    above = ops.cast(
        ops.op("Greater", shares, ops.op("ReduceMean", shares, ops.constant([1]), keepdims=1)), "float32"
    )
    count = ops.op("ReduceSum", above, ops.constant([1]), keepdims=1)
    none = ops.op("Sub", one, ops.op("Min", count, one))
    weights = ops.op("Add", above, none)
    weights = ops.op("Div", weights, ops.op("ReduceSum", weights, ops.constant([1]), keepdims=1))
    attention = ops.op("ReduceMean", layer.shares("asked"), first, keepdims=0)
    return ops.op("Squeeze", ops.op("MatMul", weights, attention), first)


SPARSEVLM = Method(
    name="sparsevlm",
    citation="Zhang et al., SparseVLM, ICML 2025, arXiv 2410.04417",
    published=published_shares(STAGES),
    picks=best_of("raters"),
    watches=(Watch("raters", raters_attention, write_raters_attention),),
    numbering="compact",
    deviations=(
        "Nothing is recycled: the paper merges a part of what leaves into new tokens.",
        "Raters are chosen at each cut, by the hidden states that enter the layer before it; the paper chooses once, "
        "by embeddings.",
        "Counts are those of the released code; the paper's follow from the rank of the raters' attention.",
    ),
)
"""Attention of the words that an image resembles."""
