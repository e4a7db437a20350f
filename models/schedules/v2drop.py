"""V2Drop: keep the visual tokens that a layer changes most.

"V2Drop", CVPR 2026 (Variation-aware Vision Token Dropping): the score is how far a token's hidden state moves in the
layer before the cut, ‖h_l - h_(l-1)‖₂; it needs no attention. Before layers 3, 17 and 22 of 32 half of the tokens go,
half of the rest, and all but one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch, best_of, scaled
from divprune_edge.models.schedules.schedule import Cut

LAYERS = (3, 17, 22)


def movement(view: View) -> npt.NDArray[np.float32]:
    """Return how far the layer moves each visual token."""
    assert view.after is not None
    moved = view.of_visual(view.after) - view.of_visual(view.before)
    return np.asarray(np.sqrt((moved * moved).sum(axis=-1)), np.float32)


def write_movement(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    moved = ops.op("Sub", layer.of_visual(layer.after), layer.of_visual(layer.before))
    return ops.op("Sqrt", ops.op("ReduceSum", ops.op("Mul", moved, moved), ops.constant([1]), keepdims=0))


def _published(layers: int, visual: int) -> tuple[Cut, ...]:
    keeps = dict(
        zip(
            (scaled(layer, layers) for layer in LAYERS),
            (round(visual / 2), round(visual / 4), 1),
            strict=True,
        )
    )
    cuts, held = [], visual
    for before, keep in sorted(keeps.items()):
        if 1 <= keep < held:
            cuts.append(Cut(before, keep))
            held = keep
    return tuple(cuts)


V2DROP = Method(
    name="v2drop",
    citation="V2Drop, CVPR 2026",
    published=_published,
    picks=best_of("movement"),
    watches=(Watch("movement", movement, write_movement),),
    numbering="original",
)
"""How far the layer before the cut moves a token."""
