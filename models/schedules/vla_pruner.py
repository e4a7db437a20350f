"""VLA-Pruner, prefill part: what the whole prompt attends to, and what actions looked at in the steps before.

Liu et al.: "VLA-Pruner: Temporal-Aware Dual-Level Visual Token Pruning for Efficient Vision-Language-Action
Inference", 2025, arXiv 2511.16449. The score is the attention that a visual token receives in the layer before the
cut, mean over all rows and heads. Where there were steps before, a second ranking is the attention of their action
tokens, weighted by age; the best of both stay. Before layer 3 three quarters leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import (
    Indices,
    LayerGraph,
    Method,
    Values,
    View,
    Watch,
    as_values,
    best,
    cuts_by_share,
)
from divprune_edge.models.schedules.schedule import Cut

LAYER, SHARE = 3, 0.25
DECAY, WINDOW = 0.8, 3
HISTORY = "history"


def mean_received(view: View) -> npt.NDArray[np.float32]:
    """Return the attention that each visual token receives, mean over rows and heads."""
    return np.asarray(view.shares("all").mean(axis=(0, 1)), np.float32)


def write_mean_received(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    return ops.op("ReduceMean", layer.shares("all"), ops.constant([0, 1]), keepdims=0)


def temporal_guide(steps: Sequence[npt.NDArray[np.floating[Any]]]) -> npt.NDArray[np.float32]:
    """Return the mean of the last :data:`WINDOW` steps' attention [m] to the visual tokens, each weighted by its age.

    The newest step comes last; a step weighs :data:`DECAY` times the one after it.

    Raises:
        UserError: there are none, or they are no finite numbers of the same visual tokens.
    """
    found = [as_values("steps", step) for step in steps][-WINDOW:]
    counts = sorted({len(step) for step in found})
    if len(counts) != 1:
        what = f"'steps' are of {counts} visual tokens" if counts else "There are no 'steps'"
        raise UserError(
            f"{what}: give an array for each step before, with a number for each visual token of the image.",
            code="schedule-values",
        )
    recent = np.stack(found)
    weights = np.float32(DECAY) ** np.arange(len(recent), dtype=np.float32)[::-1]
    return np.asarray(weights @ recent / weights.sum(), np.float32)


def vla_picks(values: Values, visual: int, keep: int) -> Indices:
    """Return the best of the attention received and, where there is one, of the history: by the better of two ranks."""
    received = values["received"]
    if HISTORY not in values:
        return best(received, keep)
    ranks = np.empty((2, visual), np.int64)
    for rank, scores in zip(ranks, (received, values[HISTORY]), strict=True):
        rank[best(scores, visual)] = np.arange(visual)
    return np.lexsort((ranks[0], ranks.min(axis=0)))[:keep].astype(np.int64)


def _published(layers: int, visual: int) -> tuple[Cut, ...]:
    return cuts_by_share(visual, {min(LAYER, layers - 1): SHARE})


VLA_PRUNER = Method(
    name="vla-pruner",
    citation="Liu et al., VLA-Pruner, 2025, arXiv 2511.16449, prefill",
    published=_published,
    picks=vla_picks,
    watches=(Watch("received", mean_received, write_mean_received),),
    numbering="original",
    parameters={"decay": DECAY, "window": WINDOW},
    takes=(HISTORY,),
    deviations=(
        "The union of both rankings is cut to size by the better rank; the paper takes the most diverse of it.",
        "Of the history's steps the newest weighs most; in the released code the oldest does, as its weights are in "
        "the opposite order.",
        "Without a history it prunes by the prompt's attention; the released code prunes nothing before it has three "
        "steps.",
    ),
)
"""Attention received in the prefill, and by actions before."""
