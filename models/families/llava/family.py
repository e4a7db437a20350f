"""The LLaVA-1.5 family: a vision tower, a two-layer projector and a decoder (Liu et al. 2023, 2310.03744).

With a SigLIP tower it is LLaVA-Interleave's layout as well (Li et al. 2024, 2407.07895).
"""

from __future__ import annotations

from divprune_edge.models.families.family import Family
from divprune_edge.models.families.llava.encoder import write_encoder
from divprune_edge.models.families.llava.preprocessing import read_preprocessing
from divprune_edge.models.families.llava.reading import OF_ONE_TILE
from divprune_edge.models.families.llava.reference import REFERENCE
from divprune_edge.models.families.llava.spec import read_llava
from divprune_edge.models.families.llava.weights import NAMING
from divprune_edge.models.files import Config

__all__ = ["LLAVA"]

VICUNA_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'] | upper }}: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The prompt form that LLaVA-1.5 was trained with."""

_LLAMAS: dict[str, Config] = {
    "llava-1.5-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "llava-1.5-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
}
_QWENS: dict[str, Config] = {
    "llava-interleave-qwen-0.5b": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    },
    "llava-interleave-qwen-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
# SigLIP so400m at 384 pixels, less its last layer: LLaVA-Interleave's feature is the output of the 26th of 27.
_SO400M: Config = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_PRESETS: dict[str, Config] = {
    **{
        name: {"model_type": "llava", "text_config": {"model_type": "llama", **sizes}}
        for name, sizes in _LLAMAS.items()
    },
    **{
        name: {
            "model_type": "llava",
            "text_config": {"model_type": "qwen2", "vocab_size": 152000, **sizes},
            "vision_config": _SO400M,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        }
        for name, sizes in _QWENS.items()
    },
}


LLAVA = Family(
    name="llava",
    template=VICUNA_TEMPLATE,
    presets=_PRESETS,
    spec=read_llava,
    canonical_name=NAMING.canonical,
    weight_names=NAMING.find,
    preprocessing=lambda files, spec: read_preprocessing(files, spec.vision.image_size),
    reader=OF_ONE_TILE,
    sample_sizes=lambda spec: [spec.image_size] * 4,
    encoder=write_encoder,
    reference=REFERENCE,
)
