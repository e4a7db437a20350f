"""V2Drop: keep the visual tokens that a layer changes most.

Chen et al.: "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models" (V2Drop), CVPR 2026, arXiv
2509.01552. The score is how far a token's hidden state moves in the layer
before the cut, ‖h_l - h_(l-1)‖₂; it needs no attention. Before layers 3, 17 and 22 of 32 half of the tokens go,
half of the rest, and all but one; of Qwen2-VL's 28 three quarters before layer 3, 95 % of the rest before 16, and all
but one before 22.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import LayerGraph, Method, View, Watch, best_of, scaled
from divprune_edge.models.schedules.schedule import Cut

LAYERS = (3, 17, 22)
QWEN_LAYERS = 28


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
    if layers == QWEN_LAYERS:
        few = max(1, visual // 4)
        return _falling(visual, (3, few), (16, max(1, few // 20)), (22, 1))
    keeps = (round(visual / 2), round(visual / 4), 1)
    return _falling(
        visual, *sorted({scaled(at, layers): n for at, n in zip(LAYERS, keeps, strict=True)}.items())
    )


def _falling(held: int, *stages: tuple[int, int]) -> tuple[Cut, ...]:
    """Return those of the stages (layer, tokens) that remove something."""
    cuts = []
    for before, keep in stages:
        if 1 <= keep < held:
            cuts.append(Cut(before, keep))
            held = keep
    return tuple(cuts)


V2DROP = Method(
    name="v2drop",
    citation="Chen et al., V2Drop, CVPR 2026, arXiv 2509.01552",
    published=_published,
    picks=best_of("movement"),
    watches=(Watch("movement", movement, write_movement),),
    numbering="original",
)
"""How far the layer before the cut moves a token."""
