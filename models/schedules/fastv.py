"""FastV: after the second layer, keep the visual tokens that the prompt's last token attends to most.

Chen et al.: "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language
Models", ECCV 2024, arXiv 2403.06764. The score is the attention of the last row in the layer before the cut, mean over
heads; positions stay as they were.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch, best_of, cuts_by_share
from divprune_edge.models.schedules.schedule import Cut

LAYER, SHARE = 2, 0.5


def last_attention(view: View) -> npt.NDArray[np.float32]:
    """Return the last row's attention to each visual token, mean over heads."""
    return np.asarray(view.shares("last").mean(axis=(0, 1)), np.float32)


def write_last_attention(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    return ops.op("ReduceMean", layer.shares("last"), ops.constant([0, 1]), keepdims=0)


def _published(layers: int, visual: int) -> tuple[Cut, ...]:
    return cuts_by_share(visual, {min(LAYER, layers - 1): SHARE})


FASTV = Method(
    name="fastv",
    citation="Chen et al., ECCV 2024, arXiv 2403.06764",
    published=_published,
    picks=best_of("attention"),
    watches=(Watch("attention", last_attention, write_last_attention),),
    numbering="original",
    parameters={"layer": LAYER, "share": SHARE},
)
"""The last token's attention in the layer before the cut."""
