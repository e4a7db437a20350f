"""TransPrune: keep what layers transform most, and what the instruction attends to.

Li et al.: "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model", CVPR 2026, arXiv
2507.20630. A token's transition in a branch, attention or MLP, is ``‖out‖ / ‖in‖`` times the softmax, over all
tokens, of ``1 - cos(out, in)``, where the branch reads ``in`` behind its norm; both branches of the layers from the
seventh on are summed. To that comes the attention of the text behind the image, by the layer that follows the cut;
both are scaled to a sum of 1 over an image's tokens and weigh the same. Behind layers 7, 9 and 12 of 32 stay 7/8, 5/8
and 1/8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.schedules.method import (
    Indices,
    LayerGraph,
    Method,
    Values,
    View,
    Watch,
    best,
    published_shares,
    scaled,
)

STAGES = {7: 0.875, 9: 0.625, 12: 0.125}
EPSILON = 1e-8


def transition(view: View) -> npt.NDArray[np.float32]:
    """Return how far both branches transform each visual token."""
    assert view.middle is not None and view.after is not None and view.normed is not None
    attended = view.of("all", view.middle) - view.of("all", view.before)
    fed = view.of("all", view.after) - view.of("all", view.middle)
    read = (view.of("all", view.normed[0]), view.of("all", view.normed[1]))
    found = _transition(read[0], attended) + _transition(read[1], fed)
    return np.asarray(found[view.visual], np.float32)


def _transition(read: npt.NDArray[Any], wrote: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return float32 [n] of rows [n, D] into and out of a branch."""
    before, after = (np.sqrt((x * x).sum(axis=1)) for x in (read, wrote))
    cosine = (read * wrote).sum(axis=1) / np.maximum(before * after, np.float32(EPSILON))
    turned = np.exp(-cosine)
    return np.asarray(after / before * (turned / turned.sum()), np.float32)


def write_transition(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    before, middle, after = (layer.of("all", x) for x in (layer.before, layer.middle, layer.after))
    first, second = (layer.of("all", x) for x in layer.normed)
    found = ops.op(
        "Add",
        _write_transition(ops, first, ops.op("Sub", middle, before)),
        _write_transition(ops, second, ops.op("Sub", after, middle)),
    )
    return ops.op(
        "Squeeze", layer.of_visual(ops.op("Unsqueeze", found, ops.constant([0]))), ops.constant([1])
    )


def _write_transition(ops: Ops, read: Any, wrote: Any) -> Any:
    """Write float32 [n, 1]."""
    columns = ops.constant([1])

    def dot(a: Any, b: Any) -> Any:
        return ops.op("ReduceSum", ops.op("Mul", a, b), columns, keepdims=1)

    before, after = (ops.op("Sqrt", dot(x, x)) for x in (read, wrote))
    length = ops.op("Max", ops.op("Mul", before, after), ops.constant(EPSILON, "float32"))
    turned = ops.op("Exp", ops.op("Neg", ops.op("Div", dot(read, wrote), length)))
    share = ops.op("Div", turned, ops.op("ReduceSum", turned, ops.constant([0]), keepdims=1))
    return ops.op("Mul", ops.op("Div", after, before), share)


def asked_attention(view: View) -> npt.NDArray[np.float32]:
    """Return the attention that the text behind the image gives to each visual token, mean over rows and heads."""
    return np.asarray(view.shares("asked").mean(axis=(0, 1)), np.float32)


def write_asked_attention(ops: Ops, layer: LayerGraph) -> Any:
    """Write the same."""
    return ops.op("ReduceMean", layer.shares("asked"), ops.constant([0, 1]), keepdims=0)


def transprune_picks(values: Values, visual: int, keep: int) -> Indices:
    """Return the tokens with the largest sum of both shares."""
    asked, turned = values["asked"], values["transition"]
    return best(asked / (asked.sum() + EPSILON) + turned / (turned.sum() + EPSILON), keep)


TRANSPRUNE = Method(
    name="transprune",
    citation="Li et al., TransPrune, CVPR 2026, arXiv 2507.20630",
    published=published_shares(STAGES),
    picks=transprune_picks,
    watches=(
        Watch("transition", transition, write_transition, summed=True),
        Watch("asked", asked_attention, write_asked_attention, offset=1),
    ),
    numbering="compact",
    since=lambda layers: scaled(min(STAGES), layers) - 1,
    deviations=(
        "The softmax is of 1 - cos, as in the released code; the paper takes the cosine's absolute value.",
        "Of the two published settings this is the one that keeps more.",
    ),
)
"""Token transitions over several layers, and the instruction's attention."""
