"""How LLaVA checkpoints name their weights."""

from __future__ import annotations

from collections.abc import Collection

from divprune_edge.models.families.family import WeightNames
from divprune_edge.models.families.llava.spec import PROJECTOR, TOWER
from divprune_edge.models.families.naming import canonical, find_head, find_prefix
from divprune_edge.models.towers import PROBE

# The prefixes of the namings in the wild: before and since transformers 4.52, and since 5.0.
_VISION = (
    "model.vision_tower.vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
)
_PROJECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")
_DECODER = ("model.language_model.", "language_model.model.", "model.language_model.model.")
_HEAD = (
    "lm_head.weight",
    "language_model.lm_head.weight",
    "model.lm_head.weight",
    "model.language_model.lm_head.weight",
)


def find_weights(names: Collection[str], tied: bool) -> WeightNames:
    """Return the naming of a checkpoint from the names of its tensors.

    Args:
        names: all tensor names.
        tied: whether the config ties the output head to the embedding, for checkpoints that store no head.

    Raises:
        UserError: a part is missing.
    """
    decoder = find_prefix(_DECODER, "embed_tokens.weight", names, "language model", "LLaVA")
    head = find_head(_HEAD, decoder, names, tied=tied)
    return WeightNames(
        encoder={
            TOWER: find_prefix(_VISION, PROBE, names, "vision tower", "LLaVA"),
            PROJECTOR: find_prefix(_PROJECTOR, "linear_1.weight", names, "projector", "LLaVA"),
        },
        decoder=decoder,
        head=head,
    )


def canonical_name(name: str) -> str | None:
    """Return the name of a weight or module whatever the spelling of its prefix, None where it is in no part.

    ``language_model.model.norm.weight`` and ``model.language_model.norm.weight`` are both
    ``decoder.norm.weight``; the output head is ``head.weight``.
    """
    return canonical(name, {"vision": _VISION, "projector": _PROJECTOR, "decoder": _DECODER}, _HEAD)
