"""Signals: what a selector may ask of the vision encoder beyond the visual tokens.

A signal is one more output of the vision graph. It is computed beside the layer that it looks at, from that
layer's queries and keys, so that no layer has to give up a fused attention: a row of class-token attention is
``softmax(q_cls K^T / sqrt(d))``, 1 x (n + 1) values per head. Signals are float32 whatever the weights are
(``cls_token`` alone has the tokens' type). Rows are those of ``visual_tokens``.

Layers are counted from 0. "The feature layer" is the one whose output is the feature (22 of CLIP ViT-L's 24);
layers chosen by a paper for 24 layers keep their relative depth in towers of other depths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune_edge.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from divprune_edge.models.clip import ClipVisionSpec
    from divprune_edge.models.llava import LlavaSpec

CLS_ATTENTION = "cls_attention"
CLS_ATTENTION_SUM = "cls_attention_sum"
ATTENTION_OBJECT = "attention_object"
ATTENTION_RECEIVED = "attention_received"
KEYS = "keys"
CLS_TOKEN = "cls_token"

SIGNALS: dict[str, str] = {
    CLS_ATTENTION: "[N] attention of the class token to each patch in the feature layer, mean over heads",
    CLS_ATTENTION_SUM: "[N] the same summed over the last third of the layers, up to the feature layer",
    ATTENTION_OBJECT: "[N] attention that each patch receives in the object layer, mean over heads and queries",
    ATTENTION_RECEIVED: "[N] attention that each patch receives in the feature layer, mean over heads and queries",
    KEYS: "[N, d] keys of the patches in the feature layer, mean over heads",
    CLS_TOKEN: "[1, D] the feature's class token after the projector",
}
"""Name -> shape of one tile and meaning."""

NONE, ALL = "none", "all"

# HiPrune's object layer is the 9th of 24; VTC-CLS sums from index 16 of 24.
_OBJECT_DEPTH = 9 / 24
_SUM_DEPTH = 16 / 24


@dataclass(frozen=True)
class SignalLayers:
    """Which layers (from 0) the signals look at: ``summed`` is a range of them."""

    feature: int
    object: int
    summed: range


def signal_layers(spec: ClipVisionSpec) -> SignalLayers:
    """Return the layers of a tower that signals look at.

    Raises:
        UserError: the feature is the tower's input, before any attention.
    """
    if spec.used_layers == 0:
        raise UserError(
            "The checkpoint's feature is the vision tower's input (vision_feature_layer 0), before any "
            "attention: choose a selector that needs no signals, such as divprune.",
            code="signals-unavailable",
        )
    feature = spec.used_layers - 1
    middle = min(max(round(_OBJECT_DEPTH * spec.layers) - 1, 0), feature)
    first = min(round(_SUM_DEPTH * spec.layers), feature)
    return SignalLayers(feature, middle, range(first, feature + 1))


def signal_shape(name: str, spec: LlavaSpec) -> tuple[int, ...]:
    """Return the shape of a signal for one tile."""
    if name == KEYS:
        return (spec.tokens, spec.vision.head_dim)
    if name == CLS_TOKEN:
        return (1, spec.width)
    return (spec.tokens,)


def parse_signals(asked: str, needed: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the signals to export, in the order of :data:`SIGNALS`.

    Args:
        asked: ``all``, ``none``, or names with commas between them.
        needed: what the selector declares; always included.

    Raises:
        UserError: an unknown name; the closest one is suggested.
    """
    names = {ALL: set(SIGNALS), NONE: set()}.get(asked)
    if names is None:
        names = {name.strip() for name in asked.split(",") if name.strip()}
    for name in sorted(names):
        if name not in SIGNALS:
            known = ", ".join([ALL, NONE, *SIGNALS])
            raise UserError(
                f"There is no signal '{name}'{did_you_mean(name, [ALL, NONE, *SIGNALS])}: known are {known}.",
                code="signals-unknown",
            )
    wanted = names | set(needed)
    return tuple(name for name in SIGNALS if name in wanted)
