"""Names of weights in every spelling found."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.models.families.qwen_vl.weights import canonical_name, find_weights

PROBES = ("patch_embed.proj.weight", "embed_tokens.weight")
NEW = ("model.visual.", "model.language_model.", "lm_head.weight")
OLD = ("visual.", "model.", "lm_head.weight")
HALF_WAY = ("visual.", "language_model.model.", "language_model.lm_head.weight")


@pytest.mark.parametrize("spelling", [NEW, OLD, HALF_WAY], ids=["new", "old", "half-way"])
def test_names_in_every_spelling(spelling: tuple[str, str, str]) -> None:
    tower, decoder, head = spelling
    names = {tower + PROBES[0], decoder + PROBES[1], head}
    found = find_weights(names, tied=False)
    assert (found.encoder, found.decoder, found.head) == ({"visual": tower}, decoder, head)
    assert not found.tied
    assert found.split(f"{tower}blocks.0.norm1.weight") == ("visual", "blocks.0.norm1.weight")
    assert found.split(f"{decoder}norm.weight") == ("language_model", "norm.weight")
    tied = find_weights(names - {head}, tied=True)
    assert tied.tied
    with refused("weights-incomplete", "tie_word_embeddings"):
        find_weights(names - {head}, tied=False)
    with refused("weights-incomplete", "vision tower", "Qwen-VL"):
        find_weights(names - {tower + PROBES[0]}, tied=False)
    with refused("weights-incomplete", "language model", "Qwen-VL"):
        find_weights(names - {decoder + PROBES[1]}, tied=False)


@pytest.mark.parametrize("spelling", [NEW, OLD, HALF_WAY], ids=["new", "old", "half-way"])
def test_one_name_for_all_spellings(spelling: tuple[str, str, str]) -> None:
    tower, decoder, head = spelling
    assert canonical_name(f"{tower}merger.mlp.0.weight") == "vision.merger.mlp.0.weight"
    assert canonical_name(f"{decoder}layers.0.mlp.up_proj") == "decoder.layers.0.mlp.up_proj"
    assert canonical_name(head) == "head.weight"
    assert canonical_name(head.removesuffix(".weight")) == "head"
    assert canonical_name("audio_tower.conv.weight") is None
