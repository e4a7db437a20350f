"""How checkpoints of Qwen2.5-VL and Qwen3-VL name their weights."""

from __future__ import annotations

from collections.abc import Collection

from divprune_edge.models.families.family import WeightNames
from divprune_edge.models.families.naming import canonical, find_head, find_prefix
from divprune_edge.models.families.qwen_vl.spec import TOWER

# The prefixes of the namings in the wild: since transformers 4.52, and before, with the decoder beside the tower.
_VISION = ("model.visual.", "visual.")
_DECODER = ("model.language_model.", "language_model.model.", "model.")
_HEAD = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")


def find_weights(names: Collection[str], tied: bool) -> WeightNames:
    """Return the naming of a checkpoint from the names of its tensors.

    Args:
        names: all tensor names.
        tied: whether the config ties the output head to the embedding, for checkpoints that store no head.

    Raises:
        UserError: a part is missing.
    """
    decoder = find_prefix(_DECODER, "embed_tokens.weight", names, "language model", "Qwen-VL")
    tower = find_prefix(_VISION, "patch_embed.proj.weight", names, "vision tower", "Qwen-VL")
    return WeightNames({TOWER: tower}, decoder, find_head(_HEAD, decoder, names, tied=tied))


def canonical_name(name: str) -> str | None:
    """Return the name of a weight or module whatever the spelling of its prefix, None where it is in no part.

    ``model.norm.weight`` and ``model.language_model.norm.weight`` are both ``decoder.norm.weight``; the output head is
    ``head.weight``.
    """
    return canonical(name, {"vision": _VISION, "decoder": _DECODER}, _HEAD)
