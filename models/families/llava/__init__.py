"""The LLaVA-1.5 family: a CLIP tower, a two-layer projector and a decoder (Liu et al. 2023, 2310.03744)."""

from __future__ import annotations

from divprune_edge.models.families.family import Family
from divprune_edge.models.families.llava.encoder import write_encoder
from divprune_edge.models.families.llava.preprocessing import read_preprocessing
from divprune_edge.models.families.llava.reference import REFERENCE
from divprune_edge.models.families.llava.spec import read_llava
from divprune_edge.models.families.llava.weights import canonical_name, find_weights
from divprune_edge.models.files import Config
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.preprocess import encoder_pixels

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

_DECODERS = {
    "llava-1.5-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "llava-1.5-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
}
_PRESETS: dict[str, Config] = {
    name: {"model_type": "llava", "text_config": {"model_type": "llama", **sizes}}
    for name, sizes in _DECODERS.items()
}

LLAVA = Family(
    name="llava",
    template=VICUNA_TEMPLATE,
    presets=_PRESETS,
    spec=read_llava,
    canonical_name=canonical_name,
    weight_names=find_weights,
    preprocessing=lambda files, spec: read_preprocessing(files, spec.vision.image_size),
    read=lambda image, facts, size, alone: ImageInput(encoder_pixels(image, facts, *size)),
    encoder=write_encoder,
    reference=REFERENCE,
)
