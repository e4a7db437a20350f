"""Names of weights in every spelling found."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.models.families.llava.weights import NAMING

TOWERS = (
    "model.vision_tower.vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
)
PROBES = ("embeddings.patch_embedding.weight", "linear_1.weight", "embed_tokens.weight")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("old", [True, False])
def test_names_in_both_spellings(tower: str, old: bool) -> None:
    projector = "multi_modal_projector." if old else "model.multi_modal_projector."
    decoder = "language_model.model." if old else "model.language_model."
    head = "language_model.lm_head.weight" if old else "lm_head.weight"
    prefixes = (tower, projector, decoder)
    names = {*(prefix + probe for prefix, probe in zip(prefixes, PROBES, strict=True)), head}
    found = NAMING.find(names, tied=False)
    assert (*found.encoder.values(), found.decoder, found.head) == (*prefixes, head)
    assert list(found.encoder) == ["vision_tower", "multi_modal_projector"]
    assert not found.tied
    tied = NAMING.find(names - {head}, tied=True)
    assert tied.head == f"{decoder}embed_tokens.weight"
    assert tied.tied
    with refused("weights-incomplete", "lm_head.weight", "tie_word_embeddings"):
        NAMING.find(names - {head}, tied=False)
    for prefix, probe, part in zip(
        prefixes, PROBES, ("vision tower", "projector", "language model"), strict=True
    ):
        with refused("weights-incomplete", part, f"{probe}'"):
            NAMING.find(names - {prefix + probe}, tied=False)
