"""Hugging Face checkpoints of real sizes with random weights: right for speed, useless for answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divprune_edge.models.families import family_named, family_of
from divprune_edge.models.families.family import WeightNames

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
QWEN3_VL_2B: dict[str, Any] = family_named("qwen3_vl").presets["qwen3-vl-2b"]
"""Config of Qwen3-VL-2B, where it is not its class' default."""
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


@dataclass(frozen=True)
class Layout:
    """What checkpoints of a family say beside their sizes; ``special`` are tokens, in the order of their ids."""

    model_type: str
    special: tuple[str, ...]
    names: WeightNames
    config: Mapping[str, Any]
    processor: Mapping[str, Any]


def llava_layout(vision: Mapping[str, Any], *, tiled: bool = False) -> Layout:
    """Return that of LLaVA; ``tiled`` makes it a LLaVA-NeXT, whose images become up to four tiles and the whole."""
    side = vision["image_size"]
    names = WeightNames(
        {
            "vision_tower": "vision_tower.vision_model.",
            "multi_modal_projector": "multi_modal_projector.",
        },
        "language_model.model.",
        "language_model.lm_head.weight",
        "image_newline" if tiled else None,
    )
    grids = [[side * rows, side * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    pinpoints = {"image_grid_pinpoints": grids} if tiled else {}
    return Layout(
        "llava_next" if tiled else "llava",
        ("<unk>", "<s>", "</s>", "<image>"),
        names,
        {"image_token_index": 3, **pinpoints},
        {
            "image_processor_type": "LlavaNextImageProcessor" if tiled else "CLIPImageProcessor",
            "crop_size": {"height": side, "width": side},
            "size": {"shortest_edge": side},
            **pinpoints,
        },
    )


def qwen3_vl_layout(vision: Mapping[str, Any], most_pixels: int) -> Layout:
    """Return that of Qwen3-VL, whose output head is its embedding, for images of at most so many pixels."""
    decoder = "model.language_model."
    special = ("<unk>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    return Layout(
        "qwen3_vl",
        special,
        WeightNames({"visual": "model.visual."}, decoder, f"{decoder}embed_tokens.weight"),
        {
            "tie_word_embeddings": True,
            "image_token_id": special.index("<|image_pad|>"),
            "vision_start_token_id": special.index("<|vision_start|>"),
            "vision_end_token_id": special.index("<|vision_end|>"),
        },
        {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "patch_size": vision["patch_size"],
            "merge_size": vision["spatial_merge_size"],
            "temporal_patch_size": vision["temporal_patch_size"],
            "size": {"shortest_edge": 1024, "longest_edge": most_pixels},
        },
    )


def write_random_checkpoint(
    folder: Path, vision: dict[str, Any], text: dict[str, Any], seed: int = 0, *, layout: Layout | None = None
) -> Path:
    """Write a float16 checkpoint of the given sizes, one shard per decoder layer, and return its folder.

    Without a ``layout`` it is a LLaVA.
    """
    from safetensors.numpy import save_file

    found = llava_layout(vision) if layout is None else layout
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": found.model_type,
        "vision_config": vision,
        "text_config": text,
        **found.config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(found.processor))
    _write_text_files(folder, found.special)
    shapes = found.names.parameters(family_of(config).spec(config), text["vocab_size"], text["vocab_size"])
    random = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    for shard, part in _shards(shapes, f"{found.names.decoder}layers."):
        weights = {name: _weight(random, name, shape) for name, shape in part.items()}
        if found.names.head in weights and not found.names.tied:
            # Special tokens have no text: they are never the likeliest, so that a reader sees each token.
            weights[found.names.head][: len(found.special)] = 0
        save_file(weights, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def _shards(
    shapes: dict[str, tuple[int, ...]], layers: str
) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer = name.partition(layers)[2].partition(".")[0]
        groups.setdefault(layer or "rest", {})[name] = shape
    for i, group in enumerate(groups.values(), start=1):
        yield f"model-{i:05d}-of-{len(groups):05d}.safetensors", group


def _weight(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return normal values of the usual scale; for very large matrices random bits with an exponent that is small."""
    if np.prod(shape) > _BITS_ABOVE:
        bits = np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.uint16)
        return (bits & _SMALL).view(np.float16).reshape(shape)
    if re.search(r"norm[12]?\.weight$|layernorm|layrnorm|layer_norm", name):
        return np.ones(shape, np.float16)
    scale = np.float32(0.02 if len(shape) == 1 else 0.7 / np.sqrt(shape[-1]))
    return (random.standard_normal(shape, dtype=np.float32) * scale).astype(np.float16)


# Drawing normal numbers takes longer than writing them to the disk.
_BITS_ABOVE = 2**23
# Clears the exponent's upper bits: values below 2**-11.
_SMALL = np.uint16(0b1_00011_1111111111)


def _write_text_files(folder: Path, special: Sequence[str]) -> None:
    """Write a tokenizer of letters; of the special tokens the first stands for all else, the third ends an answer."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    unknown, begin, end = special[:3]
    words = {word: i for i, word in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": begin, "eos_token": end, "unk_token": unknown}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": words[end]}))
