"""``config.json`` as found in the wild, attribute by attribute as transformers reads it; refusals by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from raising import refused

from divprune_edge.models.activations import activation
from divprune_edge.models.families import family_of
from divprune_edge.models.families.llava.spec import read_llava

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
    "an empty SigLIP tower": {"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}},
    "LLaVA-Interleave": {
        "model_type": "llava",
        "image_token_index": 151646,
        "text_config": {"model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 152000},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "image_size": 384,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 26,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
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
    assert vision.activation == activation(tower.hidden_act, "")
    is_clip = tower.model_type == "clip_vision_model"
    assert (vision.class_token, vision.pre_norm, vision.patch_bias) == (is_clip, is_clip, not is_clip)
    layers = wanted.vision_feature_layer
    states = range(tower.num_hidden_layers + 1)
    assert vision.feature_states == tuple(
        states[i] for i in ([layers] if isinstance(layers, int) else layers)
    )
    assert vision.drops_first == (wanted.vision_feature_select_strategy == "default")


def test_the_numbers_of_llava_15_7b() -> None:
    spec = read_llava(LLAVA_15_7B)
    assert (spec.tokens, spec.width, spec.vision.used_layers) == (576, 4096, 23)
    assert (spec.decoder.layers, spec.decoder.head_dim, spec.decoder.context) == (32, 128, 4096)


def test_the_numbers_of_llava_interleave() -> None:
    spec = read_llava(SPARSE["LLaVA-Interleave"])
    assert (spec.tokens, spec.vision.rows, spec.vision.used_layers) == (729, 729, 26)
    dropped = read_llava({**SPARSE["LLaVA-Interleave"], "vision_feature_select_strategy": "default"})
    assert (dropped.tokens, dropped.vision.rows) == (728, 729)


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


REFUSALS: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"model_type": "llava_next_video"}, ("model-unsupported", "LLaVA-NeXT-Video")),
    (
        {"model_type": "llava_llama", "mm_vision_tower": "x"},
        ("model-unsupported", "mm_vision_tower", "llava-hf/llava-1.5-7b-hf"),
    ),
    (
        {"model_type": "llava", "mm_vision_tower": "openai/clip"},
        ("model-unsupported", "such as fine-tunes, ask their authors"),
    ),
    ({"model_type": "llava_mistral"}, ("model-unsupported", "such as fine-tunes, ask their authors")),
    ({"model_type": "vipllava"}, ("model-unsupported", "ViP-LLaVA")),
    ({"model_type": "bert"}, ("model-unsupported", "'bert'", "'llava'")),
    ({}, ("model-unsupported", "None")),
    (changed("quantization_config", value={"bits": 4}), ("weights-quantized", "quantization_config")),
    (
        changed("text_config", "model_type", value="gemma"),
        ("model-unsupported", "'gemma'"),
    ),
    (
        changed("vision_config", "model_type", value="siglip2_vision_model"),
        ("model-unsupported", "'siglip2_vision_model'", "'clip_vision_model' and 'siglip_vision_model'"),
    ),
    (changed("vision_config", "num_channels", value=4), ("config-unsupported", "4 channels")),
    (
        changed("vision_config", "num_attention_heads", value=15),
        ("config-inconsistent", 1024, 15),
    ),
    (changed("vision_config", "image_size", value=7), ("config-inconsistent", 7, 14)),
    (
        changed("vision_config", "hidden_act", value="mish"),
        ("config-unsupported", "vision hidden_act", "'mish'"),
    ),
    (
        changed("projector_hidden_act", value="glu"),
        ("config-unsupported", "projector_hidden_act", "'glu'"),
    ),
    (
        changed("text_config", "hidden_act", value="xielu"),
        ("config-unsupported", "text hidden_act", "'xielu'"),
    ),
    (
        changed("vision_feature_layer", value=-26),
        ("config-value-invalid", "-26", 24),
    ),
    (
        changed("vision_feature_layer", value=25),
        ("config-value-invalid", 25, 24),
    ),
    (
        {
            "model_type": "llava",
            "vision_config": {"model_type": "siglip_vision_model", "image_size": 16},
        },
        ("config-inconsistent", "'default' drops it"),
    ),
    (changed("vision_feature_layer", value=[]), ("config-value-invalid", "vision_feature_layer is []")),
    (
        changed("vision_feature_layer", value="last"),
        ("config-value-invalid", "'vision_feature_layer' is 'last'"),
    ),
    (
        changed("vision_feature_select_strategy", value="cls"),
        ("config-unsupported", "'cls'", "'default' and 'full'"),
    ),
    (changed("text_config", "num_key_value_heads", value=5), ("config-inconsistent", 32, 5)),
    (changed("text_config", "head_dim", value=33), ("config-inconsistent", "head_dim 33")),
    (
        changed("text_config", "hidden_size", value="wide"),
        ("config-value-invalid", "'hidden_size' is 'wide'"),
    ),
    (changed("text_config", "hidden_size", value=True), ("config-value-invalid", "'hidden_size' is True")),
    (
        changed("text_config", "num_hidden_layers", value=0),
        ("config-value-invalid", "'num_hidden_layers' is 0"),
    ),
    (changed("text_config", "num_key_value_heads", value=5), ("config-inconsistent", 32, 5)),
    (changed("text_config", "head_dim", value=33), ("config-inconsistent", 33)),
    (changed("text_config", "hidden_size", value="wide"), ("config-value-invalid", "'wide'")),
    (changed("text_config", "hidden_size", value=True), ("config-value-invalid", "True")),
    (changed("text_config", "num_hidden_layers", value=0), ("config-value-invalid", 0)),
]


@pytest.mark.parametrize(("config", "told"), REFUSALS, ids=["-".join(map(str, told)) for _, told in REFUSALS])
def test_refusals_say_why(config: dict[str, Any], told: tuple[Any, ...]) -> None:
    with refused(*told) as error:
        family_of(config).spec(config)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", ")"))


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ({"model_type": "mistral"}, (4096,) * 4),
        ({"model_type": "mistral", "sliding_window": None}, ()),
        ({"model_type": "mistral", "sliding_window": 9}, (9,) * 4),
        ({"model_type": "llama", "sliding_window": 9}, ()),
        ({"model_type": "qwen2", "sliding_window": 9}, ()),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9}, (None,) * 4),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 4096),
        ),
        (
            {
                "model_type": "qwen2",
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 9, None, 9),
        ),
    ],
)
def test_sliding_windows(text: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    config = {"model_type": "llava", "text_config": text | {"num_hidden_layers": 4}}
    decoder = read_llava(config).decoder
    assert decoder.windows == windows


def test_a_window_that_no_sequence_reaches_is_none() -> None:
    text = {"model_type": "mistral", "sliding_window": 4096, "num_hidden_layers": 2}
    decoder = read_llava({"model_type": "llava", "text_config": text}).decoder
    assert decoder.within(4096).windows == ()
    assert decoder.within(4097).only_window == 4096
