"""Small random LLaVA checkpoints in the Hugging Face layout, with odd dimensions and in every spelling found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGE_TOKEN = "<image>"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN)
NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_TEXT = (
    "user assistant : what is in the picture ? a an how many red green blue circle square star left right of "
    "above below one two three yes no there are do you see count colour shape and or not with which number read "
    "big small far near top bottom middle , ."
)
WORDS = tuple(_TEXT.split())
IMAGE_TOKEN_ID = SPECIAL.index(IMAGE_TOKEN)

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 35,
    "patch_size": 7,
    "projection_dim": 24,
}
"""5 x 5 patches."""

TEXT = {
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
}

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
VIDEO_TEMPLATE = TEMPLATE.replace("{% else %}", "{% elif part['type'] == 'video' %}<pad>\n{% else %}", 1)
"""The same with a place for clips: ``<pad>``, whose id is 3."""

PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    # transformers 5 in memory
    "model.vision_tower": (),
    # transformers 4.52 and later
    "model.vision_tower.vision_model": (("model.vision_tower.", "model.vision_tower.vision_model."),),
    # the first converted checkpoints, such as llava-1.5-7b-hf
    "vision_tower.vision_model": (
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.image_newline", "image_newline"),
    ),
    "vision_tower": (
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.image_newline", "image_newline"),
    ),
}
"""Spelling of the weight names, called after its vision tower -> prefixes to replace."""

CLIP_VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"text": {"num_key_value_heads": 2}},
    "one key-value head": {"text": {"num_key_value_heads": 1}},
    "tied embeddings": {"text": {"tie_word_embeddings": True}, "tied": True},
    "explicit head_dim": {"text": {"head_dim": 16}},
    "attention and mlp bias": {"text": {"attention_bias": True, "mlp_bias": True}},
    "mistral": {"kind": "mistral", "text": {"num_key_value_heads": 2, "sliding_window": None}},
    "mistral, sliding window": {"kind": "mistral", "text": {"num_key_value_heads": 2, "sliding_window": 11}},
    "qwen2": {"kind": "qwen2", "text": {"num_key_value_heads": 2}},
    "qwen2, sliding window in some layers": {
        "kind": "qwen2",
        "text": {
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    },
    "qwen2 tied": {"kind": "qwen2", "text": {"tie_word_embeddings": True}, "tied": True},
    "linear rope": {
        "text": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}
    },
    "llama3 rope": {
        "text": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        }
    },
    "old rope spelling": {
        "old_rope": {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    },
    "last layer, full strategy": {
        "llava": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    },
    "feature layer counted from the front": {"llava": {"vision_feature_layer": 1}},
    "two feature layers": {"llava": {"vision_feature_layer": [-3, -1]}},
    "two feature layers, full strategy": {
        "llava": {"vision_feature_layer": [1, -2], "vision_feature_select_strategy": "full"}
    },
    "projector without bias": {"llava": {"multimodal_projector_bias": False}},
    "other activations": {
        "vision": {"hidden_act": "gelu"},
        "text": {"hidden_act": "gelu_pytorch_tanh"},
        "llava": {"projector_hidden_act": "relu"},
    },
    "image not a multiple of the patch": {"vision": {"image_size": 38}},
    "one layer": {"text": {"num_hidden_layers": 1}},
    "shards": {"shards": 4},
    "float16 weights": {"dtype": "float16"},
    "bfloat16 weights": {"dtype": "bfloat16"},
    "padded vocabulary": {"text": {"vocab_size": TEXT["vocab_size"] + 13}},
    "names of transformers 4.52": {"naming": "model.vision_tower.vision_model"},
    "names of the first conversions": {"naming": "vision_tower.vision_model"},
    "names without vision_model": {"naming": "vision_tower"},
    "template with BOS, tokenizer without": {"template": "{{ bos_token }}" + TEMPLATE, "add_bos": False},
    "template in tokenizer_config.json": {"template_in": "tokenizer_config.json"},
    "template in processor_config.json": {"template_in": "processor_config.json"},
    "template in chat_template.json": {"template_in": "chat_template.json"},
    "no template": {"template": None},
    "nested image processor": {"processor_in": "processor_config.json"},
    "SigLIP's processor": {
        "processor": {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": 35, "width": 35},
            "do_center_crop": None,
            "image_mean": 0.5,
            "image_std": 0.5,
        }
    },
    "other image constants": {
        "processor": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "rescale_factor": 0.005}
    },
}

SIGLIP = "siglip_vision_model"
_FULL = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
_TIED_QWEN = {"kind": "qwen2", "text": {"tie_word_embeddings": True}, "tied": True}
_SIGLIP: dict[str, dict[str, Any]] = {
    "plain": {},
    "layout of LLaVA-Interleave": {
        **_TIED_QWEN,
        "vision": {"vision_use_head": False},
        "dtype": "bfloat16",
        "naming": "vision_tower.vision_model",
        "sparse": True,
    },
    "pooling head in the first names": {"naming": "vision_tower.vision_model"},
    "no pooling head": {"vision": {"vision_use_head": False}},
    "names of transformers 4.52": {"naming": "model.vision_tower.vision_model"},
    "names without vision_model": {"naming": "vision_tower"},
    "sparse config": {"sparse": True},
    "sparse qwen2, grouped queries": {"kind": "qwen2", "text": {"num_key_value_heads": 2}, "sparse": True},
    "first patch dropped": {"llava": {"vision_feature_select_strategy": "default"}},
    "first patch dropped, last layer but one": {
        "llava": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    },
    "last layer but one": {"llava": {"vision_feature_layer": -2}},
    "feature layer counted from the front": {"llava": {"vision_feature_layer": 2}},
    "the tower's input": {"llava": {"vision_feature_layer": [0]}},
    "two feature layers": {"llava": {"vision_feature_layer": [-3, -1]}},
    "a feature layer twice": {"llava": {"vision_feature_layer": [2, 2, 0]}},
    "two feature layers, first patch dropped": {
        "llava": {"vision_feature_layer": [1, -2], "vision_feature_select_strategy": "default"}
    },
    "image not a multiple of the patch": {"vision": {"image_size": 38}},
    "patches of 5": {"vision": {"image_size": 33, "patch_size": 5}},
    "patches of one pixel": {"vision": {"image_size": 6, "patch_size": 1}},
    "nine patches": {"vision": {"image_size": 50, "patch_size": 16}},
    "one head": {"vision": {"num_attention_heads": 1}},
    "heads of an odd size": {"vision": {"hidden_size": 21}},
    "heads of one": {"vision": {"hidden_size": 6, "num_attention_heads": 6}},
    "narrow MLP": {"vision": {"intermediate_size": 17}},
    "one layer": {"vision": {"num_hidden_layers": 1}},
    "seven layers": {"vision": {"num_hidden_layers": 7}},
    "quick_gelu": {"vision": {"hidden_act": "quick_gelu"}},
    "gelu": {"vision": {"hidden_act": "gelu"}, "llava": {"projector_hidden_act": "gelu_pytorch_tanh"}},
    "silu": {"vision": {"hidden_act": "silu"}, "llava": {"projector_hidden_act": "silu"}},
    "another epsilon": {"vision": {"layer_norm_eps": 0.1}},
    "projector without bias": {"llava": {"multimodal_projector_bias": False}},
    "llama with biases, tied": {
        "text": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "tied": True,
    },
    "mistral": {"kind": "mistral", "text": {"num_key_value_heads": 2, "sliding_window": 11}},
    "qwen2 untied": {"kind": "qwen2"},
    "shards of float16": {"shards": 3, "dtype": "float16"},
    "CLIP's processor": {
        "processor": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 35},
            "do_center_crop": True,
            "crop_size": {"height": 35, "width": 35},
        }
    },
    "nested image processor": {"processor_in": "processor_config.json"},
}
SIGLIP_VARIATIONS: dict[str, dict[str, Any]] = {
    f"siglip, {name}": {**options, "tower": SIGLIP, "llava": {**_FULL, **options.get("llava", {})}}
    for name, options in _SIGLIP.items()
}

TILED = {"llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}
"""Families whose images are cut into tiles, and how transformers' classes of theirs begin."""


def grids(*sizes: tuple[int, int], tile: int = VISION["image_size"]) -> dict[str, Any]:
    """Return the config's field of grids of so many tiles, down and across."""
    return {"image_grid_pinpoints": [[down * tile, across * tile] for down, across in sizes]}


def up_to(edge: int, tile: int = VISION["image_size"]) -> dict[str, Any]:
    """Return the field of all grids of up to so many tiles an edge, as LLaVA-OneVision has them."""
    edges = range(1, edge + 1)
    return grids(*((down, across) for down in edges for across in edges), tile=tile)


_FIVE = grids((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""LLaVA-NeXT's five."""
_NEWEST = {"text": {"tie_word_embeddings": True, "num_key_value_heads": 2}, "tied": True}
_LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_NEXT: dict[str, dict[str, Any]] = {
    "plain": {},
    "layout of LLaVA-1.6 with Mistral": {
        "kind": "mistral",
        "text": {"num_key_value_heads": 2, "sliding_window": None},
        "dtype": "float16",
        "naming": "vision_tower.vision_model",
        "shards": 3,
        "without": ["vision_feature_layer", "multimodal_projector_bias"],
    },
    "mistral, sliding window": {"kind": "mistral", "text": {"num_key_value_heads": 1, "sliding_window": 11}},
    "llama3 rope, grouped queries": {"text": {"rope_parameters": _LLAMA_3, "num_key_value_heads": 2}},
    "old rope spelling": {
        "old_rope": {"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    },
    "qwen2": {"kind": "qwen2", "text": {"num_key_value_heads": 2}},
    "qwen2 tied": {"kind": "qwen2", "text": {"tie_word_embeddings": True}, "tied": True},
    "qwen2, sliding window in some layers": CLIP_VARIATIONS["qwen2, sliding window in some layers"],
    "tied embeddings": {"text": {"tie_word_embeddings": True}, "tied": True},
    "attention and mlp bias": {"text": {"attention_bias": True, "mlp_bias": True, "head_dim": 16}},
    "one layer": {"text": {"num_hidden_layers": 1}},
    "siglip": {"tower": SIGLIP, "llava": _FULL},
    "siglip, sparse qwen2": {"tower": SIGLIP, "kind": "qwen2", "sparse": True, "llava": _FULL},
    "image not a multiple of the patch": {
        "vision": {"image_size": 38},
        "llava": grids((2, 2), (1, 3), tile=38),
    },
    "patches of 5": {"vision": {"image_size": 33, "patch_size": 5}, "llava": grids((2, 1), (1, 2), tile=33)},
    "four patches": {"vision": {"image_size": 32, "patch_size": 16}, "llava": grids((3, 2), (2, 3), tile=32)},
    "one patch": {"vision": {"image_size": 14, "patch_size": 14}, "llava": up_to(4, tile=14)},
    "feature layer counted from the front": {"llava": {"vision_feature_layer": 1}},
    "last layer": {"llava": {"vision_feature_layer": -1}},
    "two feature layers": {"llava": {"vision_feature_layer": [-3, -1]}},
    "a feature layer twice, projector without bias": {
        "llava": {"vision_feature_layer": [1, 1, 2], "multimodal_projector_bias": False}
    },
    "other activations": {
        "vision": {"hidden_act": "gelu"},
        "text": {"hidden_act": "gelu_pytorch_tanh"},
        "llava": {"projector_hidden_act": "relu"},
    },
    "one grid": {"llava": grids((2, 2))},
    "one grid of one tile": {"llava": grids((1, 1))},
    "grids of one row": {"llava": grids((1, 2), (1, 3), (1, 4), (1, 5))},
    "grids of one column": {"llava": grids((4, 1), (2, 1), (6, 1))},
    "grids in no order, one twice": {"llava": grids((3, 2), (1, 6), (2, 3), (1, 1), (3, 2), (4, 1))},
    "many grids": {"llava": up_to(5)},
    "no grids": {
        "vision": {"image_size": 168, "patch_size": 56, "hidden_size": 12},
        "llava": {"image_grid_pinpoints": None},
        "without": ["image_grid_pinpoints"],
    },
    "sparse config": {"sparse": True},
    "names of transformers 4.52": {"naming": "model.vision_tower.vision_model"},
    "names of the first conversions": {"naming": "vision_tower.vision_model"},
    "names without vision_model": {"naming": "vision_tower"},
    "shards": {"shards": 4},
    "bfloat16 weights": {"dtype": "bfloat16"},
    "padded vocabulary": {"text": {"vocab_size": TEXT["vocab_size"] + 13}},
    "template with BOS, tokenizer without": {"template": "{{ bos_token }}" + TEMPLATE, "add_bos": False},
    "template in processor_config.json": {"template_in": "processor_config.json"},
    "no template": {"template": None},
    "nested image processor": {"processor_in": "processor_config.json"},
    "fast image processor": {"processor": {"image_processor_type": "LlavaNextImageProcessorFast"}},
    "tiles resized to both edges, not cropped": {
        "processor": {"size": {"height": 35, "width": 35}, "do_center_crop": False}
    },
    "tiles resized, then cropped": {"processor": {"size": {"shortest_edge": 40}}},
    "numbers for sizes": {"processor": {"size": 35, "crop_size": 35, "resample": 2}},
    "other image constants": {
        "processor": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3], "rescale_factor": 0.005}
    },
    "not normalised": {"processor": {"do_normalize": False, "do_pad": False}},
}
_ONEVISION: dict[str, dict[str, Any]] = {
    "plain": {},
    "layout of LLaVA-OneVision": {
        **_NEWEST,
        "vision": {"vision_use_head": False},
        "dtype": "float16",
        "naming": "vision_tower.vision_model",
        "sparse": True,
        "without": ["vision_feature_layer", "vision_feature_select_strategy", "vision_aspect_ratio"],
    },
    **{
        f"at most {most} tiles": {"llava": {**up_to(4), "vision_aspect_ratio": f"anyres_max_{most}"}}
        for most in range(1, 10)
    },
    "parts without a kind": {"sparse": True, "kindless": True},
    "tied": {"text": {"tie_word_embeddings": True}, "tied": True, "seed": 1},
    "sliding window in some layers": CLIP_VARIATIONS["qwen2, sliding window in some layers"],
    "grouped queries, one layer": {"text": {"num_key_value_heads": 1, "num_hidden_layers": 1}},
    "llama3 rope": {"kind": "llama", "text": {"rope_parameters": _LLAMA_3}},
    "mistral": {"kind": "mistral", "text": {"num_key_value_heads": 2, "sliding_window": 11}},
    "clip": {
        "tower": "clip_vision_model",
        "llava": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
    },
    "last layer but one": {"llava": {"vision_feature_layer": -2}},
    "two feature layers": {"llava": {"vision_feature_layer": [-3, -1]}},
    "the tower's input, projector without bias": {
        "llava": {"vision_feature_layer": [0], "multimodal_projector_bias": False}
    },
    "image not a multiple of the patch": {"vision": {"image_size": 38}, "llava": up_to(3, tile=38)},
    "patches of 5": {"vision": {"image_size": 33, "patch_size": 5}, "llava": up_to(2, tile=33)},
    "one patch": {
        "vision": {"image_size": 14, "patch_size": 14},
        "llava": {**up_to(6, tile=14), "vision_aspect_ratio": "anyres_max_17"},
    },
    "other activations": {"vision": {"hidden_act": "gelu"}, "llava": {"projector_hidden_act": "silu"}},
    "one grid": {"llava": grids((3, 3))},
    "one grid of one tile": {"llava": grids((1, 1))},
    "grids of one row": {"llava": grids((1, 2), (1, 7), (1, 4))},
    "many grids": {"llava": up_to(6)},
    "no grids": {
        "vision": {"image_size": 384, "patch_size": 128, "hidden_size": 6},
        "llava": {"image_grid_pinpoints": None},
        "without": ["image_grid_pinpoints", "vision_aspect_ratio"],
    },
    "names of transformers 4.52": {"naming": "model.vision_tower.vision_model"},
    "names without vision_model": {"naming": "vision_tower"},
    "shards of bfloat16": {"shards": 3, "dtype": "bfloat16"},
    "no template": {"template": None},
    "nested image processor": {"processor_in": "processor_config.json"},
    "tiles resized, then cropped": {
        "processor": {"size": {"height": 40, "width": 37}, "do_center_crop": True, "crop_size": 35}
    },
    "one edge for size": {"processor": {"size": {"shortest_edge": 35}, "do_pad": False}},
    "other image constants": {
        "processor": {
            "image_mean": 0.4,
            "image_std": [0.2, 0.25, 0.3],
            "rescale_factor": 0.005,
            "resample": 0,
        }
    },
}
_TILED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]]] = {
    "llava_next": ({}, _FIVE, _NEXT),
    "llava_onevision": (
        {"tower": SIGLIP, "kind": "qwen2"},
        {**_FULL, **up_to(3), "vision_aspect_ratio": "anyres_max_2"},
        _ONEVISION,
    ),
}
TILED_VARIATIONS: dict[str, dict[str, Any]] = {
    f"{family}, {name}": {
        **parts,
        **options,
        "family": family,
        "llava": {**llava, **options.get("llava", {})},
    }
    for family, (parts, llava, variations) in _TILED.items()
    for name, options in variations.items()
}
NEXT, ONEVISION = (TILED_VARIATIONS[f"{family}, plain"] for family in TILED)
"""Up to 5 tiles; and up to 10, more than one run of the encoder takes, whose features are shrunk beyond 2 * 1.21."""
VARIATIONS: dict[str, dict[str, Any]] = {**CLIP_VARIATIONS, **SIGLIP_VARIATIONS, **TILED_VARIATIONS}
"""Name -> arguments of :func:`make_checkpoint`. Each exports and answers as transformers does."""


def make_checkpoint(
    folder: Path,
    *,
    family: str = "llava",
    kind: str = "llama",
    tower: str = "clip_vision_model",
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    llava: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    old_rope: Mapping[str, Any] | None = None,
    tied: bool = False,
    dtype: str = "float32",
    naming: str = "model.vision_tower",
    shards: int = 1,
    template: str | None = TEMPLATE,
    template_in: str = "chat_template.jinja",
    processor_in: str = "preprocessor_config.json",
    add_bos: bool = True,
    sparse: bool = False,
    kindless: bool = False,
    without: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a LLaVA checkpoint made by transformers' own classes and return its folder.

    Args:
        folder: created if needed.
        family: ``model_type`` of the whole.
        kind: ``model_type`` of the language model.
        tower: ``model_type`` of the vision tower.
        text: overrides of :data:`TEXT`.
        vision: overrides of :data:`VISION`.
        llava: further fields of the whole's config.
        processor: overrides of the image processor's settings.
        old_rope: fields that replace ``rope_parameters`` in the written ``config.json``.
        tied: whether the whole config, too, says that the head is tied to the embedding.
        dtype: torch type of the stored weights.
        naming: a key of :data:`PREFIXES`.
        shards: number of weight files; more than one gets an index.
        template: chat template, or None for none.
        template_in: file that holds it.
        processor_in: file that holds the image processor's settings.
        add_bos: whether the tokenizer puts BOS in front.
        sparse: whether the parts' configs say only what is asked for here.
        kindless: whether they do not even say what they are.
        without: fields of the whole's config that are left out of the written file.
        seed: of the weights.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder.mkdir(parents=True, exist_ok=True)
    room = {"max_position_embeddings": 1024} if family in TILED else {}
    options, seen = {**TEXT, **room, **(text or {})}, {**VISION, **(vision or {})}
    if old_rope:
        scaling = old_rope["rope_scaling"]
        options["rope_parameters"] = {
            "rope_type": scaling["type"],
            "rope_theta": old_rope["rope_theta"],
            "factor": scaling["factor"],
        }
    config = CONFIG_MAPPING[family](
        vision_config=CONFIG_MAPPING[tower](**seen),
        text_config=CONFIG_MAPPING[kind](**options),
        image_token_id=IMAGE_TOKEN_ID,
        tie_word_embeddings=tied,
        **(llava or {}),
    )
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    randomise(model)
    save_weights(folder, model, PREFIXES[naming], getattr(torch, dtype), shards)
    config.save_pretrained(folder)
    parts = {"text_config": {"model_type": kind, **options}, "vision_config": {"model_type": tower, **seen}}
    for part in parts.values() if kindless else ():
        del part["model_type"]
    edit_json(
        folder / "config.json",
        lambda data: _finish_config(data, dtype, old_rope, parts if sparse else {}, without),
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3})
    save_tokenizer(folder, add_bos)
    save_template(folder, template, template_in)
    of_tower = _siglip_processor(seen["image_size"]) if tower == SIGLIP else {}
    of_family = {"image_processor_type": f"{TILED[family]}ImageProcessor"} if family in TILED else {}
    cut = {k: v for k, v in (llava or {}).items() if k == "image_grid_pinpoints" and v is not None}
    _save_processor(
        folder, processor_in, seen["image_size"], {**of_tower, **of_family, **cut, **(processor or {})}
    )
    return folder


def edit_json(path: Path, edit: Any) -> None:
    """Let ``edit`` change the JSON object of a file in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    write_json(path, data)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def randomise(model: Any) -> None:
    """Draw weights so that every one of them moves the output: norms near one, matrices of unit gain."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "layrnorm" in name or "ln_q" in name:
                torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
            elif parameter.ndim == 5:
                torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
            elif "embed" in name or "lm_head" in name:
                torch.nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[1] ** -0.5)
            else:
                torch.nn.init.normal_(parameter, std=0.3)


def save_weights(
    folder: Path, model: Any, renamed: Sequence[tuple[str, str]], dtype: Any, shards: int
) -> None:
    """Write a model's weights with the beginnings of their names replaced as ``renamed`` says."""
    from safetensors.torch import save_file

    state = {name: weight.to(dtype).contiguous() for name, weight in model.state_dict().items()}
    if any(getattr(said, "tie_word_embeddings", False) for said in (model.config, model.config.text_config)):
        del state["lm_head.weight"]
    for old, new in renamed:
        state = {new + name[len(old) :] if name.startswith(old) else name: w for name, w in state.items()}
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(
            {name: weight.clone() for name, weight in state.items()}, folder / "model.safetensors", metadata
        )
        return
    names = list(state)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({name: state[name].clone() for name in part}, folder / file, metadata)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _finish_config(
    data: dict[str, Any],
    dtype: str,
    old_rope: Mapping[str, Any] | None,
    parts: Mapping[str, Any],
    without: Sequence[str],
) -> None:
    data |= parts
    for name in without:
        del data[name]
    data["dtype"] = data["text_config"]["dtype"] = data["vision_config"]["dtype"] = dtype
    data["architectures"] = [f"{TILED.get(data['model_type'], 'Llava')}ForConditionalGeneration"]
    if old_rope:
        del data["text_config"]["rope_parameters"]
        data["text_config"] |= old_rope


def save_tokenizer(
    folder: Path,
    add_bos: bool,
    tokens: Sequence[str] = (*SPECIAL, *WORDS),
    special: Sequence[str] = SPECIAL,
    named: Mapping[str, str] = NAMED,
) -> None:
    """Write a tokenizer of words, ids in their order; ``named`` are those with a part to play, such as eos_token."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    unknown = named.get("unk_token", special[0])
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    write_json(folder / "special_tokens_map.json", dict(named))


def save_template(folder: Path, template: str | None, place: str) -> None:
    if template is None:
        return
    if place.endswith(".jinja"):
        (folder / place).write_text(template, encoding="utf-8")
        return
    path = folder / place
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**data, "chat_template": template})


def _siglip_processor(size: int) -> dict[str, Any]:
    """What ``SiglipImageProcessor`` writes, less CLIP's settings."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": size, "width": size},
        "do_center_crop": None,
        "crop_size": None,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }


def _save_processor(folder: Path, place: str, size: int, overrides: Mapping[str, Any]) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        **overrides,
    }
    put_processor(folder, place, settings, "LlavaProcessor")


def put_processor(folder: Path, place: str, settings: Mapping[str, Any], whole: str) -> None:
    """Write an image processor's settings, in the ``whole`` processor's file where it has none of its own."""
    if place == "preprocessor_config.json":
        write_json(folder / place, settings)
        return
    path = folder / place
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**data, "processor_class": whole, "image_processor": settings})
