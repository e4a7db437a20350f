"""Signals: what a selector may ask of the vision encoder beyond the visual tokens.

A signal is one more output of the vision graph. It is computed beside the layer that it looks at, from that
layer's queries and keys, so that no layer has to give up a fused attention: a row of class-token attention is
``softmax(q_cls K^T / sqrt(d))``, 1 x (n + 1) values per head. Signals are float32 whatever the weights are
(``cls_token`` alone has the tokens' type). Rows are those of ``visual_tokens``.

Layers are counted from 0. "The feature layer" is the one whose output is the feature (22 of CLIP ViT-L's 24);
layers chosen by a paper for 24 layers keep their relative depth in towers of other depths.
"""

from __future__ import annotations

from collections.abc import Collection

from divprune_edge.errors import UserError, did_you_mean

CLS_ATTENTION = "cls_attention"
CLS_ATTENTION_SUM = "cls_attention_sum"
ATTENTION_OBJECT = "attention_object"
ATTENTION_RECEIVED = "attention_received"
KEYS = "keys"
CLS_TOKEN = "cls_token"
INFORMATION_FLOW = "information_flow"
ATTENTION_GLOBAL = "attention_global"

SIGNALS: dict[str, str] = {
    CLS_ATTENTION: "[N] attention of the class token to each patch in the feature layer, mean over heads",
    CLS_ATTENTION_SUM: "[N] the same summed over the last third of the layers, up to the feature layer",
    ATTENTION_OBJECT: "[N] attention that each patch receives in the object layer, mean over heads and queries",
    ATTENTION_RECEIVED: "[N] attention that each patch receives in the feature layer, mean over heads and queries",
    KEYS: "[N, d] keys of the patches in the feature layer, mean over heads",
    CLS_TOKEN: "[1, D] the feature's class token after the projector",
    INFORMATION_FLOW: "[N] share of the class token's attention and of the similarity of values, times the length of a "
    "patch's own value, averaged over the layers, each with twice the weight of the one before",
    ATTENTION_GLOBAL: "[N] attention that each patch receives in the feature layer from those that receive more than "
    "5.4 % of all, mean over heads; from all where there are none",
}
"""Name -> shape of one tile and meaning."""
CLASS_TOKEN = (CLS_ATTENTION, CLS_ATTENTION_SUM, CLS_TOKEN, INFORMATION_FLOW)
"""Signals of the class token: a tower that has none, such as SigLIP's, cannot give them."""

GLOBAL_SHARE = 39.26 / 729
"""Of all attention, what a patch receives that counts as global: VFlowOpt's 39.26 times the mean of 729 patches."""

ORIGINS = "origins"
"""No signal, but an output beside them where most patches leave inside the encoder: int64 [N], which of the visual
tokens of the whole image each is."""

NONE, ALL = "none", "all"


def parse_signals(
    asked: str, needed: Collection[str] = (), offered: Collection[str] = tuple(SIGNALS)
) -> tuple[str, ...]:
    """Return the signals to export, in the order of :data:`SIGNALS`.

    Args:
        asked: ``all``, ``none``, or names with commas between them.
        needed: what the selector declares; always included.
        offered: what the checkpoint's vision encoder can give.

    Raises:
        UserError: an unknown name (the closest one is suggested), or one that the encoder cannot give.
    """
    names = {ALL: set(offered), NONE: set()}.get(asked)
    if names is None:
        names = {name.strip() for name in asked.split(",") if name.strip()}
    for name in sorted(names):
        if name not in SIGNALS:
            known = ", ".join([ALL, NONE, *SIGNALS])
            raise UserError(
                f"There is no signal '{name}'{did_you_mean(name, [ALL, NONE, *SIGNALS])}: known are {known}.",
                code="signals-unknown",
            )
    wanted = tuple(name for name in SIGNALS if name in names | set(needed))
    missing = [name for name in wanted if name not in offered]
    if missing:
        raise UserError(
            f"The checkpoint's vision encoder cannot give {', '.join(missing)}{why_not(missing, offered)}: its signals "
            f"are {', '.join(offered) or 'none'}.",
            code="signals-unavailable",
        )
    return wanted


def why_not(missing: Collection[str], offered: Collection[str]) -> str:
    """Return the end of a clause: why an encoder that offers some signals cannot give others, where that is known."""
    return " because it has no class token" if offered and set(missing) <= set(CLASS_TOKEN) else ""
