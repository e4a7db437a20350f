"""Names of weights in every spelling found."""

from __future__ import annotations

import pytest
from raising import refused

from divprune_edge.models.families.qwen_vl.weights import NAMING

PROBES = ("patch_embed.proj.weight", "embed_tokens.weight")
NEW = ("model.visual.", "model.language_model.", "lm_head.weight")
OLD = ("visual.", "model.", "lm_head.weight")
HALF_WAY = ("visual.", "language_model.model.", "language_model.lm_head.weight")


@pytest.mark.parametrize("spelling", [NEW, OLD, HALF_WAY], ids=["new", "old", "half-way"])
def test_names_in_every_spelling(spelling: tuple[str, str, str]) -> None:
    tower, decoder, head = spelling
    names = {tower + PROBES[0], decoder + PROBES[1], head}
    found = NAMING.find(names, tied=False)
    assert (found.encoder, found.decoder, found.head) == ({"visual": tower}, decoder, head)
    assert not found.tied
    assert found.split(f"{tower}blocks.0.norm1.weight") == ("visual", "blocks.0.norm1.weight")
    assert found.split(f"{decoder}norm.weight") == ("language_model", "norm.weight")
    tied = NAMING.find(names - {head}, tied=True)
    assert tied.tied
    with refused("weights-incomplete", "tie_word_embeddings"):
        NAMING.find(names - {head}, tied=False)
    with refused("weights-incomplete", "vision tower", "Qwen-VL"):
        NAMING.find(names - {tower + PROBES[0]}, tied=False)
    with refused("weights-incomplete", "language model", "Qwen-VL"):
        NAMING.find(names - {decoder + PROBES[1]}, tied=False)


@pytest.mark.parametrize("spelling", [NEW, OLD, HALF_WAY], ids=["new", "old", "half-way"])
def test_one_name_for_all_spellings(spelling: tuple[str, str, str]) -> None:
    tower, decoder, head = spelling
    assert NAMING.canonical(f"{tower}merger.mlp.0.weight") == "visual.merger.mlp.0.weight"
    assert NAMING.canonical(f"{decoder}layers.0.mlp.up_proj") == "decoder.layers.0.mlp.up_proj"
    assert NAMING.canonical(head) == "head.weight"
    assert NAMING.canonical(head.removesuffix(".weight")) == "head"
    assert NAMING.canonical("audio_tower.conv.weight") is None
