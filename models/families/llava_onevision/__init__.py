"""LLaVA-OneVision (Li et al. 2024, 2408.03326): SigLIP over tiles, whose features are shrunk where they are many."""

from __future__ import annotations

import re
from dataclasses import replace

from divprune_edge.errors import UserError
from divprune_edge.models.families.llava.preprocessing import ProcessorKind
from divprune_edge.models.families.llava.reading import OF_TILES_AND_FRAMES
from divprune_edge.models.families.llava.spec import LlavaSpec, read_llava
from divprune_edge.models.families.llava.tiled import (
    TILED,
    tiled_clips,
    tiled_preprocessing,
    with_tiling,
)
from divprune_edge.models.files import Config, count, setting

__all__ = ["LLAVA_ONEVISION"]

_EDGES = range(384, 2305, 384)
_GRIDS = tuple((height, width) for height in _EDGES for width in _EDGES)
"""LlavaOnevisionConfig's and its image processor's own."""
_PROCESSOR = {"LlavaOnevision": ProcessorKind({"height": 384, "width": 384}, None, tiles=True)}

_TOWER: Config = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
}
_TEXT: Config = {"model_type": "qwen2"}

CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}\n{{ part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The prompt form of the conversions for transformers."""

_QWEN2_05B = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 152000,
    "tie_word_embeddings": True,
}
_QWEN2_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152128,
}
_PRESETS: dict[str, Config] = {
    "llava-onevision-qwen2-0.5b": {"model_type": "llava_onevision", "text_config": _QWEN2_05B},
    "llava-onevision-qwen2-7b": {"model_type": "llava_onevision", "text_config": _QWEN2_7B},
}


def _spec(config: Config) -> LlavaSpec:
    """Return the spec of a ``config.json``; absent fields take LlavaOnevisionConfig's defaults.

    Raises:
        UserError: settings that are not supported.
    """
    full = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        **{name: value for name, value in config.items() if value is not None},
        "vision_config": _kind_of(config, "vision_config", _TOWER),
        "text_config": _kind_of(config, "text_config", _TEXT),
    }
    aspect = setting(config, "vision_aspect_ratio", "anyres_max_9", str)
    found = re.fullmatch(r"anyres_max_([1-9][0-9]{0,2})", aspect)
    if found is None:
        raise UserError(
            f"config.json's vision_aspect_ratio is '{aspect}', supported is 'anyres_max_' and a number of tiles.",
            code="config-unsupported",
        )
    tiling = {"several": "base", "max_tiles": int(found.group(1))}
    name = "video_token_index" if config.get("video_token_index") is not None else "video_token_id"
    spec = replace(read_llava(full, image_token=151646), video_token_id=count(config, name, 151647))
    return with_tiling(spec, config, _GRIDS, **tiling)


def _kind_of(config: Config, name: str, default: Config) -> Config:
    """Return a part's config; one that does not say its kind is of the default's."""
    part = setting(config, name, default, dict)
    return {"model_type": default["model_type"], **part}


LLAVA_ONEVISION = replace(
    TILED,
    name="llava_onevision",
    template=CHATML_TEMPLATE,
    presets=_PRESETS,
    spec=_spec,
    preprocessing=lambda files, spec: tiled_preprocessing(files, spec, _PROCESSOR, _GRIDS),
    clips=lambda files, spec, frames, max_pixels: tiled_clips(files, spec, frames, _PROCESSOR),
    reader=OF_TILES_AND_FRAMES,
    reference=replace(TILED.reference, model="LlavaOnevisionForConditionalGeneration"),
)
