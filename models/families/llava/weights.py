"""How LLaVA checkpoints name their weights."""

from __future__ import annotations

from collections.abc import Collection

from divprune_edge.errors import UserError
from divprune_edge.models.families.family import WeightNames
from divprune_edge.models.families.llava.spec import PROJECTOR, TOWER
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
    decoder = _prefix(_DECODER, "embed_tokens.weight", names, "language model")
    head = next((name for name in _HEAD if name in names), None)
    if head is None:
        if not tied:
            raise UserError(
                "The checkpoint has no lm_head.weight and its config does not tie the output head to the "
                "embedding (tie_word_embeddings): a shard is missing, download the checkpoint again.",
                code="weights-incomplete",
            )
        head = f"{decoder}embed_tokens.weight"
    return WeightNames(
        encoder={
            TOWER: _prefix(_VISION, PROBE, names, "vision tower"),
            PROJECTOR: _prefix(_PROJECTOR, "linear_1.weight", names, "projector"),
        },
        decoder=decoder,
        head=head,
    )


def _prefix(prefixes: tuple[str, ...], probe: str, names: Collection[str], part: str) -> str:
    for prefix in prefixes:
        if prefix + probe in names:
            return prefix
    raise UserError(
        f"The checkpoint has no weights of the {part} (looked for '{prefixes[0]}{probe}' and "
        f"{len(prefixes) - 1} other spellings): a shard is missing or this is not a LLaVA checkpoint.",
        code="weights-incomplete",
    )


def canonical_name(name: str) -> str | None:
    """Return the name of a weight or module whatever the spelling of its prefix, None where it is in no part.

    ``language_model.model.norm.weight`` and ``model.language_model.norm.weight`` are both
    ``decoder.norm.weight``; the output head is ``head.weight``.
    """
    heads = [head.removesuffix(".weight") for head in _HEAD]
    if name.removesuffix(".weight") in heads:
        return "head.weight" if name.endswith(".weight") else "head"
    parts = {"vision.": _VISION, "projector.": _PROJECTOR, "decoder.": _DECODER}
    found = [
        (prefix, part) for part, prefixes in parts.items() for prefix in prefixes if name.startswith(prefix)
    ]
    if not found:
        return None
    prefix, part = max(found, key=lambda one: len(one[0]))
    return part + name[len(prefix) :]
