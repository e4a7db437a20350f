"""Small random checkpoints of Qwen2.5-VL and Qwen3-VL, with odd dimensions and in every spelling found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints import (
    WORDS,
    edit_json,
    put_processor,
    randomise,
    save_template,
    save_tokenizer,
    save_weights,
    write_json,
)

QWEN = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
"""Families, and how transformers' classes of theirs begin."""

# In the order of their ids: between ids that tests take for text.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|video_pad|>", "<|image_pad|>"),
    *("<|vision_start|>", "<|vision_end|>"),
)
NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}

TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": len(SPECIAL) + len(WORDS),
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
OWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 3, 3]}},
        {"window_size": 16, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": (
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
        },
        {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]},
    ),
}
"""What a family's text and vision config say beside that."""

ABSENT = object()
"""A setting that no config says: its class' default holds."""
LEAST, MOST = 12, 60
"""Visual tokens of an image."""
SHAPES = [
    *((70, 100), (33, 120), (9, 130), (64, 64), (131, 11), (8, 8), (100, 47), (48, 80)),
    *((5, 700), (1, 150), (77, 131), (240, 320), (300, 11), (41, 40), (16, 152), (29, 84)),
]
"""(height, width): odd, elongated, whole visual tokens, fewer than the least and more than the most."""

TEMPLATE = (
    "{% set images = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nyou see .<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set images.value = images.value + 1 %}{% if add_vision_id %}Picture {{ images.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As the checkpoints have it: a system text of its own, and every image between two tokens."""

PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "model.visual": (),
    # Before transformers 4.52.
    "visual": (("model.visual.", "visual."), ("model.language_model.", "model.")),
}

_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
_BOTH: dict[str, dict[str, Any]] = {
    "plain": {},
    "as many key-value heads": {"text": {"num_key_value_heads": 3}},
    "key-value heads of null": {"text": {"num_key_value_heads": None}},
    "grouped queries": {
        "text": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
        "seed": 1,
    },
    "one head": {"text": {"num_attention_heads": 1, "hidden_size": 16}},
    "tied": {"tied": True},
    "one layer": {"text": {"num_hidden_layers": 1}},
    "five layers": {"text": {"num_hidden_layers": 5}},
    "other activations": {
        "text": {"hidden_act": "gelu_pytorch_tanh"},
        "vision": {"hidden_act": "quick_gelu"},
    },
    "another epsilon": {"text": {"rms_norm_eps": 0.1}},
    "one block of one head": {"vision": {"depth": 1, "num_heads": 1}},
    "heads of four": {"vision": {"num_heads": 8}},
    "heads of twelve": {"vision": {"hidden_size": 36, "num_heads": 3, "intermediate_size": 17}},
    "patches that are visual tokens": {"vision": {"spatial_merge_size": 1, "patch_size": 7}},
    "nine patches a token": {"vision": {"spatial_merge_size": 3, "patch_size": 2}},
    "patches of one pixel": {"vision": {"patch_size": 1, "spatial_merge_size": 4, "temporal_patch_size": 3}},
    "one frame": {"vision": {"temporal_patch_size": 1}},
    "old rope spelling": {"old_rope": True},
}
# How files say what both families are read by in the same way: each of one of them, in turn.
_FILES: dict[str, dict[str, Any]] = {
    "shards": {"shards": 4},
    "float16 weights": {"dtype": "float16"},
    "bfloat16 shards, tied": {"dtype": "bfloat16", "shards": 3, "tied": True, "seed": 1},
    "padded vocabulary": {"text": {"vocab_size": TEXT["vocab_size"] + 13}},
    "special tokens behind the words": {"special_last": True},
    "no template": {"template": None},
    "template in chat_template.json": {"template_in": "chat_template.json"},
    "nested image processor": {"processor_in": "processor_config.json"},
    "fast image processor": {"processor": {"image_processor_type": "Qwen2VLImageProcessorFast"}},
    "Pillow's image processor": {"processor": {"image_processor_type": "Qwen2VLImageProcessorPil"}},
    "bounds in pixels": {"processor": {"min_pixels": 20 * 64, "max_pixels": 40 * 64, "size": ABSENT}},
    "bounds in both spellings": {"processor": {"min_pixels": 20 * 64, "max_pixels": 40 * 64}},
    "one bound in pixels": {"processor": {"max_pixels": 33 * 64}},
    "bounds that are near": {"processor": {"size": {"shortest_edge": 30 * 64, "longest_edge": 31 * 64}}},
    "other image constants": {
        "processor": {
            "image_mean": [0.5, 0.4, 0.3],
            "image_std": [0.2, 0.25, 0.3],
            "rescale_factor": 0.005,
            "resample": 2,
        }
    },
    "one mean for all": {"processor": {"image_mean": 0.5, "image_std": 0.4}},
    "not normalised": {"processor": {"do_normalize": False}},
    "not rescaled": {
        "processor": {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 70, 80]}
    },
    "constants of the class": {"processor": {"image_mean": ABSENT, "image_std": ABSENT, "resample": ABSENT}},
}
_OWN: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_5_vl": {
        "layout of the first checkpoints": {
            "flat": True,
            "naming": "visual",
            "old_rope": True,
            "old_kinds": True,
            "sparse": True,
            "dtype": "bfloat16",
            "shards": 2,
            "processor": {"min_pixels": LEAST * 64, "max_pixels": MOST * 64, "size": ABSENT},
        },
        "text in the whole's config": {"flat": True},
        "names of before": {"naming": "visual"},
        "old kinds": {"old_kinds": True},
        "sparse config": {
            "sparse": True,
            "text": {
                "hidden_size": 128,
                "num_attention_heads": 1,
                "rope_parameters": ABSENT,
                "rms_norm_eps": ABSENT,
            },
            "vision": {
                "patch_size": ABSENT,
                "spatial_merge_size": ABSENT,
                "temporal_patch_size": ABSENT,
                "window_size": ABSENT,
                "fullatt_block_indexes": ABSENT,
            },
        },
        "full attention where the class has it": {
            "sparse": True,
            "vision": {"depth": 9, "fullatt_block_indexes": ABSENT},
            "seed": 1,
        },
        "tied in the text alone": {"tied_text": True},
        "sections of time alone": {"text": {"rope_parameters": {**_ROPE, "mrope_section": [8, 0, 0]}}},
        "sections without time": {"text": {"rope_parameters": {**_ROPE, "mrope_section": [0, 7, 1]}}},
        "windows of one token": {"vision": {"window_size": 8}},
        "windows of three tokens": {"vision": {"window_size": 31}},
        "windows larger than images": {"vision": {"window_size": 160}},
        "windows everywhere": {"vision": {"fullatt_block_indexes": []}},
        "windows nowhere": {"vision": {"fullatt_block_indexes": [0, 1, 2]}},
        "full attention at both ends, and beyond": {"vision": {"fullatt_block_indexes": [0, 2, 31]}},
        "sliding window": {
            "text": {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
        },
        "sliding window in some layers": {
            "text": {
                "use_sliding_window": True,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            }
        },
        "sliding window that is off": {"text": {"use_sliding_window": False, "sliding_window": 5}},
    },
    "qwen3_vl": {
        "layout of the first checkpoints": {
            "old_rope": True,
            "old_kinds": True,
            "sparse": True,
            "dtype": "bfloat16",
            "shards": 2,
            "tied": True,
            "seed": 1,
        },
        "sparse config": {
            "sparse": True,
            "text": {
                "num_attention_heads": 2,
                "rope_parameters": ABSENT,
                "rms_norm_eps": ABSENT,
                "head_dim": ABSENT,
            },
            "vision": {
                "depth": 10,
                "patch_size": ABSENT,
                "spatial_merge_size": ABSENT,
                "temporal_patch_size": ABSENT,
                "num_position_embeddings": ABSENT,
                "deepstack_visual_indexes": ABSENT,
            },
        },
        "wide heads": {
            "text": {
                "head_dim": 24,
                "rope_parameters": {**_ROPE, "mrope_section": [5, 4, 3], "mrope_interleaved": True},
            }
        },
        "sections of time alone": {
            "text": {"rope_parameters": {**_ROPE, "mrope_section": [8, 0, 0], "mrope_interleaved": True}}
        },
        "more height than there is": {
            "text": {"rope_parameters": {**_ROPE, "mrope_section": [1, 4, 3], "mrope_interleaved": True}}
        },
        "attention bias": {"text": {"attention_bias": True}},
        "no deepstack": {"vision": {"deepstack_visual_indexes": []}},
        "deepstack of one": {"vision": {"deepstack_visual_indexes": [1]}},
        "deepstack of all": {"vision": {"deepstack_visual_indexes": [0, 1, 2]}},
        "deepstack of the last": {"vision": {"deepstack_visual_indexes": [2]}},
        "deepstack beyond the tower": {"vision": {"deepstack_visual_indexes": [1, 8, 16]}},
        "more deepstack than layers": {
            "vision": {"deepstack_visual_indexes": [0, 1, 2]},
            "text": {"num_hidden_layers": 2},
        },
        "one place": {"vision": {"num_position_embeddings": 1}},
        "four places": {"vision": {"num_position_embeddings": 4}},
        "more places than patches": {"vision": {"num_position_embeddings": 1024}},
    },
}
QWEN_VARIATIONS: dict[str, dict[str, Any]] = {
    f"{family}, {name}": {"family": family, **options}
    for turn, family in enumerate(QWEN)
    for name, options in (*_BOTH.items(), *list(_FILES.items())[turn::2], *_OWN[family].items())
}
"""Name -> arguments of :func:`make_qwen_checkpoint`. Each exports and answers as transformers does."""


def make_qwen_checkpoint(
    folder: Path,
    *,
    family: str = "qwen3_vl",
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    tied: bool = False,
    tied_text: bool = False,
    dtype: str = "float32",
    naming: str = "model.visual",
    shards: int = 1,
    template: str | None = TEMPLATE,
    template_in: str = "chat_template.jinja",
    processor_in: str = "preprocessor_config.json",
    sparse: bool = False,
    flat: bool = False,
    old_rope: bool = False,
    old_kinds: bool = False,
    special_last: bool = False,
    seed: int = 0,
) -> Path:
    """Write a checkpoint made by transformers' own classes and return its folder.

    Args:
        folder: created if needed.
        family: a key of :data:`QWEN`.
        text: overrides of :data:`TEXT` and what is the family's :data:`OWN`.
        vision: overrides of :data:`VISION` and that.
        processor: overrides of the image processor's settings.
        tied: whether the head is tied to the embedding.
        tied_text: whether the text's config alone says so.
        dtype: torch type of the stored weights.
        naming: a key of :data:`PREFIXES`.
        shards: number of weight files; more than one gets an index.
        template: chat template, or None for none.
        template_in: file that holds it.
        processor_in: file that holds the image processor's settings.
        sparse: whether the parts' configs say only what is asked for here.
        flat: whether the text's settings are the whole's.
        old_rope: whether they say ``rope_theta`` and ``rope_scaling``.
        old_kinds: whether the vision config names the whole's kind, and the text's none.
        special_last: whether special tokens have the last ids, and not the first.
        seed: of the weights.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder.mkdir(parents=True, exist_ok=True)
    of_text, of_vision = OWN[family]
    said = _said({**TEXT, **of_text, **({"tie_word_embeddings": True} if tied_text else {}), **(text or {})})
    seen = _said({**VISION, "out_hidden_size": said["hidden_size"], **of_vision, **(vision or {})})
    tokens = (*WORDS, *SPECIAL) if special_last else (*SPECIAL, *WORDS)
    config = CONFIG_MAPPING[family](
        vision_config=dict(seen),
        text_config=dict(said),
        tie_word_embeddings=tied or tied_text,
        **{name: tokens.index(token) for name, token in IDS.items()},
    )
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    randomise(model)
    save_weights(folder, model, PREFIXES[naming], getattr(torch, dtype), shards)
    parts = {"text_config": said, "vision_config": seen}
    config.save_pretrained(folder)

    def finish(data: dict[str, Any]) -> None:
        of = {
            name: {**(parts if sparse else data)[name], "model_type": data[name]["model_type"]}
            for name in parts
        }
        data |= of | {"dtype": dtype, "architectures": [f"{QWEN[family]}ForConditionalGeneration"]}
        if tied_text:
            del data["tie_word_embeddings"]
        if old_rope:
            _spell_rope_as_before(data["text_config"])
        if old_kinds:
            data["vision_config"]["model_type"] = family
            del data["text_config"]["model_type"]
        if flat:
            whole = data.pop("text_config")
            data |= {name: value for name, value in whole.items() if name != "model_type"}

    edit_json(folder / "config.json", finish)
    save_template(folder, template, template_in)
    _save_text(folder, tokens)
    settings = _processor(config.vision_config.to_dict(), processor or {})
    put_processor(folder, processor_in, settings, f"{QWEN[family]}Processor")
    return folder


def draft_qwen_checkpoint(folder: Path, family: str) -> Path:
    """Write one whose weights are zero, for which neither torch nor transformers is needed."""
    import numpy as np
    from safetensors.numpy import save_file

    from divprune_edge.models.families import family_named

    folder.mkdir(parents=True)
    of_text, of_vision = OWN[family]
    text = {**TEXT, **of_text, "model_type": f"{family}_text"}
    vision = {**VISION, **of_vision, "out_hidden_size": text["hidden_size"], "model_type": f"{family}_vision"}
    tokens = (*SPECIAL, *WORDS)
    ids = {name: tokens.index(token) for name, token in IDS.items()}
    config = {"model_type": family, "text_config": text, "vision_config": vision, **ids}
    write_json(folder / "config.json", config)
    save_template(folder, TEMPLATE, "chat_template.jinja")
    _save_text(folder, tokens)
    put_processor(folder, "preprocessor_config.json", _processor(vision, {}), f"{QWEN[family]}Processor")
    spec = family_named(family).spec(config)
    shapes = {f"model.visual.{name}": shape for name, shape in spec.encoder_parameters()["visual"].items()}
    decoder = spec.decoder.parameters(len(tokens))
    shapes |= {f"model.language_model.{name}": shape for name, shape in decoder.items()}
    shapes["lm_head.weight"] = (len(tokens), text["hidden_size"])
    weights = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def images_of(shapes: Sequence[tuple[int, int]], seed: int = 3) -> list[Any]:
    """Return an image of noise for each (height, width)."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def _said(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not ABSENT}


def _save_text(folder: Path, tokens: Sequence[str]) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
    save_tokenizer(folder, False, tokens, SPECIAL, NAMED)


def _processor(vision: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    token = (vision["patch_size"] * vision["spatial_merge_size"]) ** 2
    return _said(
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": LEAST * token, "longest_edge": MOST * token},
            "patch_size": vision["patch_size"],
            "merge_size": vision["spatial_merge_size"],
            "temporal_patch_size": vision["temporal_patch_size"],
            "do_resize": True,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.45, 0.4],
            "image_std": [0.25, 0.3, 0.35],
            "do_convert_rgb": True,
            **overrides,
        }
    )


def _spell_rope_as_before(text: dict[str, Any]) -> None:
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    kind = {"rope_type": "default"} if "mrope_interleaved" in rope else {"type": "mrope"}
    text["rope_scaling"] = kind | {name: value for name, value in rope.items() if name.startswith("mrope")}
