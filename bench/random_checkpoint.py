"""Hugging Face LLaVA checkpoints of real sizes with random weights: right for speed, useless for answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
LM_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
}
"""Of LLaVA-1.5-7B: with CLIP_L_336 and the projector 14.1 GB of float16."""
LM_04B = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
}
TINY_VISION = CLIP_L_336 | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 96,
    "patch_size": 4,
}
TINY_LM = LM_04B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
}


def write_random_checkpoint(
    folder: Path, vision: dict[str, Any], text: dict[str, Any], seed: int = 0, *, tiled: bool = False
) -> Path:
    """Write a float16 checkpoint of the given sizes, one shard per decoder layer, and return its folder.

    ``tiled`` makes it a LLaVA-NeXT, whose images become up to four tiles and the whole.
    """
    from safetensors.numpy import save_file

    from divprune_edge.models.families import WeightNames, family_of

    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llava", "image_token_index": 3, "vision_config": vision, "text_config": text}
    processor = {"image_processor_type": "CLIPImageProcessor"}
    if tiled:
        side = vision["image_size"]
        grids = [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
        config |= {"model_type": "llava_next", "image_grid_pinpoints": grids}
        processor = {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": grids}
    (folder / "config.json").write_text(json.dumps(config))
    _write_text_files(folder, vision["image_size"], processor)
    names = WeightNames(
        {
            "vision_tower": "vision_tower.vision_model.",
            "multi_modal_projector": "multi_modal_projector.",
        },
        "language_model.model.",
        "language_model.lm_head.weight",
        "image_newline" if tiled else None,
    )
    shapes = names.parameters(family_of(config).spec(config), text["vocab_size"], text["vocab_size"])
    random = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    for shard, part in _shards(shapes):
        save_file({name: _weight(random, name, shape) for name, shape in part.items()}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer = name.partition("language_model.model.layers.")[2].partition(".")[0]
        groups.setdefault(layer or "rest", {})[name] = shape
    for i, group in enumerate(groups.values(), start=1):
        yield f"model-{i:05d}-of-{len(groups):05d}.safetensors", group


def _weight(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return normal values of the usual scale; for very large matrices random bits with an exponent that is small."""
    if np.prod(shape) > _BITS_ABOVE:
        bits = np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.uint16)
        return (bits & _SMALL).view(np.float16).reshape(shape)
    if name.endswith("norm.weight") or "layernorm" in name or "layrnorm" in name or "layer_norm" in name:
        return np.ones(shape, np.float16)
    scale = np.float32(0.02 if len(shape) == 1 else 0.7 / np.sqrt(shape[-1]))
    return (random.standard_normal(shape, dtype=np.float32) * scale).astype(np.float16)


# Drawing normal numbers takes longer than writing them to the disk.
_BITS_ABOVE = 2**23
# Clears the exponent's upper bits: values below 2**-11.
_SMALL = np.uint16(0b1_00011_1111111111)


def _write_text_files(folder: Path, image_size: int, processor: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = {
        word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "<image>", *"abcdefghijklmnopqrstuvwxyz"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>", "<image>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    sides = {"crop_size": {"height": image_size, "width": image_size}, "size": {"shortest_edge": image_size}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **sides}))
