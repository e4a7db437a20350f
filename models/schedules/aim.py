"""AIM, the part inside the language model: an eighth of the visual tokens leaves before each layer of its second half.

Zhong et al.: "AIM: Adaptive Inference of Multi-Modal LLMs via Token Merging and Pruning", ICCV 2025, arXiv
2412.03248. Importance is a walk through a layer's attention, sharpened by a temperature of 0.1: from equal shares
five steps along ``softmax(q·k / 0.1)``; then the root of the mean square over heads. Behind layer 14 of 32 stay 7/8
and so on, none behind the 21st; of 28 behind the 15th to the 22nd. (Its merging before the language model is a
selector's.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch, best_of, published_shares

STAGES = {14 + i: 0.875 - i / 8 for i in range(8)}
OTHERS = {28: {15 + i: 0.875 - i / 8 for i in range(8)}}
"""Of Qwen2, in the released code."""
SHARPNESS = 10.0
STEPS = 5


def importance(view: View) -> npt.NDArray[np.float32]:
    """Return where a walk of :data:`STEPS` steps ends, for each visual token."""
    # Of shares p, softmax(logits / t) is p to the power 1 / t, scaled; by the largest first, for small ones underflow.
    sharp = view.attention / view.attention.max(axis=-1, keepdims=True)
    sharp = sharp ** np.float32(SHARPNESS)
    sharp = sharp / sharp.sum(axis=-1, keepdims=True)
    rank = sharp.mean(axis=1, keepdims=True)
    for _ in range(STEPS - 1):
        rank = rank @ sharp
    found = np.sqrt((rank * rank).mean(axis=0))[0]
    return np.asarray(found[view.visual], np.float32)


def write_importance(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    columns = ops.constant([2])
    shares = layer.attention
    sharp = ops.op("Div", shares, ops.op("ReduceMax", shares, columns, keepdims=1))
    sharp = ops.op("Pow", sharp, ops.constant(SHARPNESS, "float32"))
    sharp = ops.op("Div", sharp, ops.op("ReduceSum", sharp, columns, keepdims=1))
    rank = ops.op("ReduceMean", sharp, ops.constant([1]), keepdims=1)
    for _ in range(STEPS - 1):
        rank = ops.op("MatMul", rank, sharp)
    found = ops.op("Sqrt", ops.op("ReduceMean", ops.op("Mul", rank, rank), ops.constant([0]), keepdims=1))
    visual = layer.of_visual(ops.op("Transpose", found, perm=[0, 2, 1]))
    return ops.op("Squeeze", visual, ops.constant([1]))


AIM = Method(
    name="aim",
    citation="Zhong et al., AIM, ICCV 2025, arXiv 2412.03248, pruning",
    published=published_shares(STAGES, OTHERS),
    picks=best_of("importance"),
    watches=(Watch("importance", importance, write_importance),),
    numbering="original",
    parameters={"temperature": 1 / SHARPNESS, "steps": STEPS},
    deviations=(
        "Tokens leave for good; the released code masks them, so that they go on spreading importance.",
    ),
)
"""A walk through attention, in eight cuts."""
