"""Sizes of the demo model, and how its weights become a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..render import GRID, IMAGE_SIZE, PATCH
from .tokenizer import BOS, EOS, IMAGE, PAD, save_processor, vocabulary

if TYPE_CHECKING:
    import torch

VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": len(vocabulary()),
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "tie_word_embeddings": False,
}
FEATURE_LAYER = -2


def llava_config(vision: Mapping[str, Any] = VISION, text: Mapping[str, Any] = TEXT) -> Any:
    """The stock `LlavaConfig` of these sizes."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=IMAGE,
        image_seq_length=GRID * GRID,
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, EOS, PAD
    return config


def save_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor] | None, seed: int = 0) -> None:
    """Write config, float16 weights, generation defaults and processor files.

    `weights` are named as in `LlavaForConditionalGeneration.state_dict()`. What they lack (the last
    vision layer and the final norm, which feature layer -2 never reads) keeps its initialisation;
    None writes an untrained model.
    """
    import torch
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(llava_config())
    if weights is not None:
        missing, unexpected = model.load_state_dict(dict(weights), strict=False)
        last = f"model.vision_tower.encoder.layers.{VISION['num_hidden_layers'] - 1}."
        unread = (last, "model.vision_tower.post_layernorm.")
        if unexpected or not all(name.startswith(unread) for name in missing):
            raise ValueError(f"weights do not fit the model: missing {missing}, unexpected {unexpected}")
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=16
    )
    model.half().save_pretrained(folder)
    save_processor(folder, IMAGE_SIZE, PATCH)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["image_token_id"] = IMAGE  # both spellings are read in the wild
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
