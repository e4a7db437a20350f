"""Sizes of the demo model of Qwen3-VL's architecture, and how its weights become a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...render import PATCH
from ...several import TEXTS
from ..packs import Form, encoder
from ..tokenizer import build_tokenizer, vocabulary, write_json

if TYPE_CHECKING:
    import torch

SPECIAL = (
    *("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
UNK, PAD, START, END, VISION_START, VISION_END, IMAGE, VIDEO = range(len(SPECIAL))

_TEXTS = " ".join((*TEXTS, "seconds")).lower()
MORE = tuple({word for word in "".join(c if c.isalpha() else " " for c in _TEXTS).split() if len(word) > 1})
"""Words that the other demo's tokenizer lacks."""

MERGE, TEMPORAL = 2, 2
LARGEST, SMALLEST = 128, 32
"""Pixels a side of the largest and the smallest square image."""
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation of pixels, as Qwen3-VL has them."""

_IDS = vocabulary(SPECIAL, MORE)
FORM = Form(
    encoder(lambda: build_tokenizer(SPECIAL, MORE)),
    user=(START, _IDS["user"]),
    assistant=(END, START, _IDS["assistant"]),
    end=END,
    pad=PAD,
)

VISION: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "depth": 4,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": TEMPORAL,
    "out_hidden_size": 192,
    "num_position_embeddings": (LARGEST // PATCH) ** 2,
    "deepstack_visual_indexes": [1, 2],
    "hidden_act": "gelu_pytorch_tanh",
}
TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 48,
    "vocab_size": len(_IDS),
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [8, 8, 8],
        "mrope_interleaved": True,
    },
    "bos_token_id": PAD,
    "eos_token_id": END,
    "pad_token_id": PAD,
}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif item['type'] == 'text' -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def qwen_config(vision: Mapping[str, Any] = VISION, text: Mapping[str, Any] = TEXT) -> Any:
    """The stock `Qwen3VLConfig` of these sizes."""
    from transformers.models.qwen3_vl import Qwen3VLConfig

    return Qwen3VLConfig(
        vision_config=dict(vision),
        text_config=dict(text),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=False,
    )


def save_checkpoint(folder: Path, weights: Mapping[str, torch.Tensor] | None, seed: int = 0) -> None:
    """Write config, float16 weights, generation defaults and processor files.

    `weights` are named as in `Qwen3VLForConditionalGeneration.state_dict()`; None writes an untrained model.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(qwen_config())
    if weights is not None:
        model.load_state_dict(dict(weights))
    model.generation_config = GenerationConfig(
        bos_token_id=PAD, eos_token_id=END, pad_token_id=PAD, do_sample=False, max_new_tokens=16
    )
    model.half().save_pretrained(folder)
    _save_processor(folder)


def _save_processor(folder: Path) -> None:
    """Write tokenizer, chat template and the preprocessing of images and clips in the Hugging Face layout."""
    build_tokenizer(SPECIAL, MORE).save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    write_json(
        folder / "tokenizer_config.json",
        {
            **names,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "Qwen3VLProcessor",
            "extra_special_tokens": {"image_token": SPECIAL[IMAGE], "video_token": SPECIAL[VIDEO]},
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
        },
    )
    either = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(HALF),
        "image_std": list(HALF),
        "do_convert_rgb": True,
        "processor_class": "Qwen3VLProcessor",
    }
    bounds = {"shortest_edge": SMALLEST**2, "longest_edge": LARGEST**2}
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "size": bounds}
    write_json(folder / "preprocessor_config.json", either | image)
    whole = {"shortest_edge": 4 * SMALLEST**2, "longest_edge": 8 * 96**2}
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "size": whole}
    rates = {"fps": 2, "min_frames": 4, "max_frames": 8, "do_sample_frames": True}
    write_json(folder / "video_preprocessor_config.json", either | video | rates)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
