"""LLaVA-NeXT (LLaVA-1.6, Liu et al. 2024): LLaVA-1.5's parts, over the tiles of an image at a higher resolution."""

from __future__ import annotations

from dataclasses import replace

from divprune_edge.models.families.llava.preprocessing import ProcessorKind
from divprune_edge.models.families.llava.spec import LlavaSpec, read_llava
from divprune_edge.models.families.llava.tiled import (
    TILED,
    tiled_preprocessing,
    with_tiling,
)
from divprune_edge.models.files import Config

__all__ = ["LLAVA_NEXT"]

_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
"""LlavaNextConfig's and its image processor's own, height and width."""
_PROCESSOR = {"LlavaNext": ProcessorKind({"shortest_edge": 224}, 224, tiles=True)}

_VICUNA_7B = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
_VICUNA_13B = {**_VICUNA_7B, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}
_MISTRAL_7B = {
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
_PRESETS: dict[str, Config] = {
    "llava-1.6-vicuna-7b": {"model_type": "llava_next", "text_config": _VICUNA_7B},
    "llava-1.6-vicuna-13b": {"model_type": "llava_next", "text_config": _VICUNA_13B},
    "llava-1.6-mistral-7b": {"model_type": "llava_next", "text_config": _MISTRAL_7B},
}


def _spec(config: Config) -> LlavaSpec:
    return with_tiling(read_llava(config), config, _GRIDS, several="tiles")


LLAVA_NEXT = replace(
    TILED,
    name="llava_next",
    presets=_PRESETS,
    spec=_spec,
    preprocessing=lambda files, spec: tiled_preprocessing(files, spec, _PROCESSOR, _GRIDS),
    reference=replace(TILED.reference, model="LlavaNextForConditionalGeneration"),
)
