"""FitPrune: what other visual tokens and the question attend to, by a recipe that is fitted to a budget.

Ye et al.: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models", AAAI
2025, arXiv 2409.10197. With A the strongest head's attention, a token's score is the mean over visual rows of A times
the sum over the text behind the image. How many leave in which layer is computed from a few images: ``python -m
export fit``, see :mod:`divprune_edge.models.schedules.fitting`; LLaVA-1.5-7B's own is in
:mod:`divprune_edge.models.schedules.fitprune_recipe`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.models.cost_conventions import F3, LLAMA_7B, layer_flops
from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.fitprune_recipe import DELETIONS, VISUAL
from divprune_edge.models.schedules.fitting import cuts_of, gathered
from divprune_edge.models.schedules.method import Indices, LayerGraph, Method, Values, View, Watch, best
from divprune_edge.models.schedules.schedule import Cut

CUTS = 4
"""Of the published schedule; as many as ``fit`` makes where nothing else is said."""


def self_attention(view: View) -> npt.NDArray[np.float32]:
    """Return the strongest head's attention of visual tokens to each, mean over them."""
    return np.asarray(view.shares("visual").max(axis=0).mean(axis=0), np.float32)


def write_self_attention(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    strongest = ops.op("ReduceMax", layer.shares("visual"), ops.constant([0]), keepdims=0)
    return ops.op("ReduceMean", strongest, ops.constant([0]), keepdims=0)


def cross_attention(view: View) -> npt.NDArray[np.float32]:
    """Return the strongest head's attention of the text behind the image to each, summed over rows."""
    return np.asarray(view.shares("asked").max(axis=0).sum(axis=0), np.float32)


def write_cross_attention(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    strongest = ops.op("ReduceMax", layer.shares("asked"), ops.constant([0]), keepdims=0)
    return ops.op("ReduceSum", strongest, ops.constant([0]), keepdims=0)


def fitprune_picks(values: Values, visual: int, keep: int) -> Indices:
    """Return the tokens with the largest product of both."""
    return best(values["self"] * values["cross"], keep)


def _published(layers: int, visual: int) -> tuple[Cut, ...]:
    """Return the released recipe: its counts behind each layer, gathered into :data:`CUTS` cuts."""
    if (layers, visual) != (len(DELETIONS), VISUAL):
        raise UserError(
            f"fitprune's published schedule is LLaVA-1.5-7B's, {VISUAL} visual tokens in {len(DELETIONS)} layers, not "
            f"{visual} in {layers}: compute one with 'python -m export fit CHECKPOINT --images FOLDER', and give its "
            "file to --schedule.",
            code="schedule-to-be-fitted",
        )
    entering = VISUAL - np.cumsum((0, *DELETIONS[:-1]))
    held = gathered(entering, CUTS, lambda tokens: layer_flops(LLAMA_7B, tokens, F3))
    return cuts_of(held)


FITPRUNE = Method(
    name="fitprune",
    citation="Ye et al., FitPrune, AAAI 2025, arXiv 2409.10197",
    published=_published,
    picks=fitprune_picks,
    watches=(
        Watch("self", self_attention, write_self_attention),
        Watch("cross", cross_attention, write_cross_attention),
    ),
    numbering="original",
    deviations=(
        "Tokens leave behind a layer, not between its attention and its MLP: the same rows go on, at the price of "
        "that MLP.",
        "Small deletions are gathered into a few cuts.",
    ),
)
"""A fitted recipe over self- and cross-attention."""
