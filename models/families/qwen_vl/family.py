"""Qwen2.5-VL (Bai et al. 2025, 2502.13923) and Qwen3-VL (2511.21631): a tower for images of any size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from divprune_edge.models.families.family import Family
from divprune_edge.models.families.qwen_vl.model import QwenSpec, read_qwen, sample_sizes, write_encoder
from divprune_edge.models.families.qwen_vl.preprocessing import read_clips, read_patches
from divprune_edge.models.families.qwen_vl.reading import OF_PATCHES
from divprune_edge.models.families.qwen_vl.reference import qwen_reference
from divprune_edge.models.families.qwen_vl.weights import NAMING
from divprune_edge.models.files import Config

__all__ = ["QWEN2_5_VL", "QWEN3_VL"]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The prompt form of both, without a system text of its own."""

_PRESETS: dict[str, Config] = {
    "qwen3-vl-2b": {
        "model_type": "qwen3_vl",
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
        },
    },
}

QWEN3_VL: Family[QwenSpec] = Family(
    name="qwen3_vl",
    template=TEMPLATE,
    presets=_PRESETS,
    spec=partial(read_qwen, kind="qwen3_vl"),
    canonical_name=NAMING.canonical,
    weight_names=NAMING.find,
    preprocessing=lambda files, spec: read_patches(files, spec.vision),
    reader=OF_PATCHES,
    clips=partial(read_clips, kind="Qwen3VL"),
    sample_sizes=sample_sizes,
    encoder=write_encoder,
    reference=qwen_reference("Qwen3VLForConditionalGeneration"),
    numbering="original",
)
QWEN2_5_VL = replace(
    QWEN3_VL,
    name="qwen2_5_vl",
    presets={},
    spec=partial(read_qwen, kind="qwen2_5_vl"),
    clips=partial(read_clips, kind="Qwen2VL"),
    reference=qwen_reference("Qwen2_5_VLForConditionalGeneration"),
)
