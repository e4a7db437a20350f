"""Every model family, once: what an export and a runtime need to know of it.

A new family is one folder here and one line in :data:`FAMILIES`.
"""

from __future__ import annotations

from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.models.families.family import Family, Reference, Spec, WeightNames
from divprune_edge.models.families.llava import LLAVA
from divprune_edge.models.families.llava_next import LLAVA_NEXT
from divprune_edge.models.families.llava_onevision import LLAVA_ONEVISION
from divprune_edge.models.families.qwen_vl import QWEN2_5_VL, QWEN3_VL
from divprune_edge.models.files import Config, setting

__all__ = ["FAMILIES", "Family", "Reference", "Spec", "WeightNames", "family_named", "family_of"]

_ALL: tuple[Family[Any], ...] = (LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, QWEN2_5_VL, QWEN3_VL)
FAMILIES: dict[str, Family[Any]] = {family.name: family for family in _ALL}

# Named are only conversions that exist and that can be exported.
_ORIGINAL = (
    "it has the layout of the original LLaVA code (its config.json names an mm_vision_tower), and only the layout of "
    "transformers' LlavaForConditionalGeneration can be read. Of LLaVA-1.5 there are conversions "
    "(llava-hf/llava-1.5-7b-hf and llava-hf/llava-1.5-13b-hf); for other models, such as fine-tunes, ask their authors "
    "for one"
)
_QWEN = "of its line, Qwen2.5-VL and Qwen3-VL (without experts) are supported"
_UNSUPPORTED = {
    "llava_next_video": "LLaVA-NeXT-Video is not supported yet",
    "llava_llama": _ORIGINAL,
    "llava_mistral": _ORIGINAL,
    "vipllava": "ViP-LLaVA is not supported",
    "video_llava": "Video-LLaVA is not supported",
    "qwen2_vl": f"Qwen2-VL is not supported; {_QWEN}",
    "qwen3_vl_moe": f"Qwen3-VL's models with experts are not supported; {_QWEN}",
    "qwen3_5": f"Qwen3.5 is not supported; {_QWEN}",
    "qwen3_5_moe": f"Qwen3.5's models with experts are not supported; {_QWEN}",
    "qwen2_5_omni": f"Qwen2.5-Omni is not supported; {_QWEN}",
    "qwen3_omni_moe": f"Qwen3-Omni is not supported; {_QWEN}",
}


def family_of(config: Config) -> Family[Any]:
    """Return the family of a ``config.json``.

    Raises:
        UserError: one that is not supported (named, with what to do), or weights that are quantised already.
    """
    kind: str | None = setting(config, "model_type", None, str)
    if "mm_vision_tower" in config:
        raise UserError(
            f"This checkpoint cannot be exported: {_UNSUPPORTED['llava_llama']}.", code="model-unsupported"
        )
    if kind in _UNSUPPORTED:
        raise UserError(
            f"This checkpoint ('{kind}') cannot be exported: {_UNSUPPORTED[kind]}.",
            code="model-unsupported",
        )
    if kind not in FAMILIES:
        raise UserError(
            f"config.json's model_type is {kind!r}, expected {' or '.join(map(repr, FAMILIES))} "
            "(a checkpoint such as llava-hf/llava-1.5-7b-hf).",
            code="model-unsupported",
        )
    if config.get("quantization_config"):
        raise UserError(
            "The checkpoint's weights are already quantised (config.json has a quantization_config): "
            "export the original checkpoint and choose a --precision instead.",
            code="weights-quantized",
        )
    return FAMILIES[kind]


def family_named(name: str) -> Family[Any]:
    """Return the family that a manifest names.

    Raises:
        UserError: none has this name.
    """
    try:
        return FAMILIES[name]
    except KeyError:
        raise UserError(
            f"The bundle's family is '{name}', this divprune-edge knows {', '.join(FAMILIES)}: upgrade divprune-edge.",
            code="family-unknown",
        ) from None
