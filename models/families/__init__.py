"""Every model family, once: what an export and a runtime need to know of it.

A new family is one folder here and one line in :data:`FAMILIES`.
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from divprune_edge.errors import UserError

if TYPE_CHECKING:
    from divprune_edge.models.families.family import Family
    from divprune_edge.models.families.reader import Reader
    from divprune_edge.models.files import Config

__all__ = ["FAMILIES", "family_named", "family_of", "reader_of"]

_LLAVA, _QWEN_VL = f"{__name__}.llava.reading", f"{__name__}.qwen_vl.reading"
FAMILIES = {
    "llava": (f"{_LLAVA}:OF_ONE_TILE", f"{__name__}.llava.family:LLAVA"),
    "llava_next": (f"{_LLAVA}:OF_TILES", f"{__name__}.llava_next:LLAVA_NEXT"),
    "llava_onevision": (
        f"{_LLAVA}:OF_TILES_AND_FRAMES",
        f"{__name__}.llava_onevision:LLAVA_ONEVISION",
    ),
    "qwen2_5_vl": (f"{_QWEN_VL}:OF_PATCHES", f"{__name__}.qwen_vl.family:QWEN2_5_VL"),
    "qwen3_vl": (f"{_QWEN_VL}:OF_PATCHES", f"{__name__}.qwen_vl.family:QWEN3_VL"),
}
"""Name -> where its :class:`Reader` is, and its :class:`Family`. A question waits for the modules of a reader alone."""

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
    from divprune_edge.models.files import setting

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
    return family_named(kind)


def family_named(name: str) -> Family[Any]:
    """Return one of :data:`FAMILIES`."""
    family: Family[Any] = resolve_name(FAMILIES[name][1])
    return family


def reader_of(name: str) -> Reader:
    """Return how the family that a manifest names reads images.

    Raises:
        UserError: none has this name.
    """
    if name not in FAMILIES:
        raise UserError(
            f"The bundle's family is '{name}', this divprune-edge knows {', '.join(FAMILIES)}: upgrade divprune-edge.",
            code="family-unknown",
        )
    reader: Reader = resolve_name(FAMILIES[name][0])
    return reader
