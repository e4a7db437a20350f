"""SpAtten's cascade as a static schedule: the attention that a token has received so far.

Wang et al.: "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning", HPCA 2021, arXiv
2012.09852. Importance is the sum of the attention that a token receives, over all rows, heads and layers so far; the
most important stay, and what has left does not come back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch, best_of
from divprune_edge.models.schedules.pyramiddrop import PYRAMIDDROP


def received(view: View) -> npt.NDArray[np.float32]:
    """Return the attention that each visual token receives, summed over rows and heads."""
    return np.asarray(view.shares("all").sum(axis=(0, 1)), np.float32)


def write_received(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    return ops.op("ReduceSum", layer.shares("all"), ops.constant([0, 1]), keepdims=0)


SPATTEN = Method(
    name="spatten",
    citation="Wang et al., SpAtten, HPCA 2021, arXiv 2012.09852, cascade token pruning",
    published=PYRAMIDDROP.published,
    picks=best_of("received"),
    watches=(Watch("received", received, write_received, summed=True),),
    numbering="original",
    deviations=(
        "Static, with the layers and counts of pyramiddrop; the paper prunes in every layer, at a rate per task.",
        "Visual tokens alone leave; heads stay, and weights keep their bits.",
    ),
)
"""Attention received over all layers so far."""
