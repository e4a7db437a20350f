"""``config.json`` as found in the wild, attribute by attribute as transformers reads it; refusals by name."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from divprune_edge.errors import UserError
from divprune_edge.models.llava import find_weights, read_llava

LLAVA_15_7B: dict[str, Any] = {
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "model_type": "llava",
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
"""The text of llava-hf/llava-1.5-7b-hf."""

SPARSE: dict[str, dict[str, Any]] = {
    "LLaVA-1.5-7B": LLAVA_15_7B,
    "nothing": {"model_type": "llava"},
    "an empty tower": {"model_type": "llava", "text_config": {"model_type": "llama"}, "vision_config": {}},
    "mistral": {"model_type": "llava", "text_config": {"model_type": "mistral", "sliding_window": None}},
    "qwen2": {"model_type": "llava", "text_config": {"model_type": "qwen2"}},
    "qwen2 without grouping": {
        "model_type": "llava",
        "text_config": {"model_type": "qwen2", "num_key_value_heads": None},
    },
    "feature layers": {"model_type": "llava", "vision_feature_layer": [-2, 3]},
    "projector without bias": {"model_type": "llava", "multimodal_projector_bias": False},
    "llama with biases": {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 64},
    },
}


@pytest.mark.parametrize("name", SPARSE)
def test_absent_fields_are_what_transformers_assumes(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers import LlavaConfig

    written = SPARSE[name]
    wanted = LlavaConfig(
        **{key: copy.deepcopy(value) for key, value in written.items() if key != "model_type"}
    )
    text, tower = wanted.text_config, wanted.vision_config
    spec = read_llava(written)
    assert spec.image_token_id == wanted.image_token_id
    assert (spec.projector.bias, spec.projector.activation) == (
        wanted.multimodal_projector_bias,
        wanted.projector_hidden_act,
    )
    assert spec.projector.outputs == text.hidden_size
    decoder = spec.decoder
    assert decoder.kind == text.model_type
    assert decoder.hidden == text.hidden_size
    assert decoder.intermediate == text.intermediate_size
    assert decoder.layers == text.num_hidden_layers
    assert decoder.heads == text.num_attention_heads
    assert decoder.kv_heads == text.num_key_value_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert decoder.head_dim == head_dim
    assert decoder.vocabulary == text.vocab_size
    assert decoder.context == text.max_position_embeddings
    assert decoder.norm_eps == text.rms_norm_eps
    assert decoder.activation == text.hidden_act
    assert decoder.rope.theta == text.rope_parameters["rope_theta"]
    assert decoder.rope.kind == text.rope_parameters["rope_type"]
    assert decoder.qkv_bias == (text.model_type == "qwen2" or getattr(text, "attention_bias", False))
    assert decoder.output_bias == getattr(text, "attention_bias", False)
    assert decoder.mlp_bias == getattr(text, "mlp_bias", False)
    vision = spec.vision
    assert vision.hidden == tower.hidden_size
    assert vision.intermediate == tower.intermediate_size
    assert vision.layers == tower.num_hidden_layers
    assert vision.heads == tower.num_attention_heads
    assert vision.image_size == tower.image_size
    assert vision.patch_size == tower.patch_size
    assert vision.norm_eps == tower.layer_norm_eps
    assert vision.activation == tower.hidden_act
    layers = wanted.vision_feature_layer
    states = range(tower.num_hidden_layers + 1)
    assert vision.feature_states == tuple(
        states[i] for i in ([layers] if isinstance(layers, int) else layers)
    )
    assert vision.keep_cls == (wanted.vision_feature_select_strategy == "full")


def test_the_numbers_of_llava_15_7b() -> None:
    spec = read_llava(LLAVA_15_7B)
    assert (spec.tokens, spec.width, spec.vision.used_layers) == (576, 4096, 23)
    assert (spec.decoder.layers, spec.decoder.head_dim, spec.decoder.context) == (32, 128, 4096)


def test_the_config_is_not_changed() -> None:
    before = copy.deepcopy(LLAVA_15_7B)
    read_llava(LLAVA_15_7B)
    assert before == LLAVA_15_7B


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(LLAVA_15_7B)
    place: Any = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return config


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "llava_next"},
        "LLaVA-NeXT (LLaVA-1.6) cuts an image into several tiles, which is not supported",
    ),
    ({"model_type": "llava_onevision"}, "LLaVA-OneVision is not supported yet"),
    (
        {"model_type": "llava_llama", "mm_vision_tower": "x"},
        "has the layout of the original LLaVA code (its config.json names an mm_vision_tower)",
    ),
    (
        {"model_type": "llava", "mm_vision_tower": "openai/clip"},
        "for other models, such as fine-tunes, ask their authors",
    ),
    ({"model_type": "llava_mistral"}, "for other models, such as fine-tunes, ask their authors"),
    ({"model_type": "vipllava"}, "ViP-LLaVA is not supported"),
    ({"model_type": "bert"}, "is not a LLaVA config: its model_type is 'bert', expected 'llava'"),
    ({}, "is not a LLaVA config: its model_type is None"),
    (changed("quantization_config", value={"bits": 4}), "already quantised"),
    (
        changed("text_config", "model_type", value="gemma"),
        "The language model is a 'gemma', supported are llama, mis",
    ),
    (
        changed("vision_config", "model_type", value="siglip_vision_model"),
        "tower is a 'siglip_vision_model'",
    ),
    (changed("vision_config", "num_channels", value=4), "takes 4 channels, supported are 3"),
    (
        changed("vision_config", "num_attention_heads", value=15),
        "hidden size 1024 does not divide by 15 heads",
    ),
    (changed("vision_config", "image_size", value=7), "image size 7 is smaller than its patches of 14"),
    (changed("vision_config", "hidden_act", value="mish"), "vision hidden_act is 'mish', supported are"),
    (changed("projector_hidden_act", value="glu"), "projector_hidden_act is 'glu', supported are"),
    (changed("text_config", "hidden_act", value="xielu"), "text hidden_act is 'xielu', supported are"),
    (
        changed("vision_feature_layer", value=-26),
        "vision_feature_layer is -26, but the vision tower has 24 layers",
    ),
    (
        changed("vision_feature_layer", value=25),
        "vision_feature_layer is 25, but the vision tower has 24 layers",
    ),
    (changed("vision_feature_layer", value=[]), "vision_feature_layer is []"),
    (changed("vision_feature_layer", value="last"), "'vision_feature_layer' is 'last', expected int or list"),
    (
        changed("vision_feature_select_strategy", value="cls"),
        "strategy is 'cls', supported are 'default' and 'full'",
    ),
    (changed("text_config", "num_key_value_heads", value=5), "32 heads do not divide by 5 key-value heads"),
    (changed("text_config", "head_dim", value=33), "head_dim 33 is odd"),
    (changed("text_config", "hidden_size", value="wide"), "'hidden_size' is 'wide', expected int"),
    (changed("text_config", "hidden_size", value=True), "'hidden_size' is True, expected a number"),
    (changed("text_config", "num_hidden_layers", value=0), "'num_hidden_layers' is 0, expected at least 1"),
    (
        {"model_type": "llava", "text_config": {"model_type": "mistral", "sliding_window": 1024}},
        "sliding-window attention (1024 of 131072 tokens), which is not supported",
    ),
    (
        {"model_type": "llava", "text_config": {"model_type": "mistral"}},
        "sliding-window attention (4096 of 131072 tokens)",
    ),
    (
        {
            "model_type": "llava",
            "text_config": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 99},
        },
        "sliding-window attention (99 of 32768 tokens)",
    ),
]


@pytest.mark.parametrize(("config", "sentence"), REFUSALS, ids=[sentence[:40] for _, sentence in REFUSALS])
def test_refusals_say_why(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        read_llava(config)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", ")"))


def test_a_window_as_long_as_the_context_is_none() -> None:
    text = {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 4096}
    assert read_llava({"model_type": "llava", "text_config": text}).decoder.context == 4096


TOWERS = (
    "model.vision_tower.vision_model.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "vision_tower.",
)
PROBES = ("embeddings.class_embedding", "linear_1.weight", "embed_tokens.weight")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("old", [True, False])
def test_names_in_both_spellings(tower: str, old: bool) -> None:
    projector = "multi_modal_projector." if old else "model.multi_modal_projector."
    decoder = "language_model.model." if old else "model.language_model."
    head = "language_model.lm_head.weight" if old else "lm_head.weight"
    prefixes = (tower, projector, decoder)
    names = {*(prefix + probe for prefix, probe in zip(prefixes, PROBES, strict=True)), head}
    found = find_weights(names, tied=False)
    assert (found.vision, found.projector, found.decoder, found.head) == (*prefixes, head)
    assert not found.tied
    tied = find_weights(names - {head}, tied=True)
    assert tied.head == f"{decoder}embed_tokens.weight"
    assert tied.tied
    with pytest.raises(UserError, match="does not tie the output head"):
        find_weights(names - {head}, tied=False)
    for prefix, probe, part in zip(
        prefixes, PROBES, ("vision tower", "projector", "language model"), strict=True
    ):
        with pytest.raises(UserError, match=f"no weights of the {part}"):
            find_weights(names - {prefix + probe}, tied=False)
