"""How transformers' own LLaVA is reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from divprune_edge.models.families.family import Array, Model, Pixels, Process, Reference
from divprune_edge.models.families.llava.spec import PROJECTOR, TOWER, LlavaSpec
from divprune_edge.models.files import Config
from divprune_edge.models.towers.expected_signals import expected_signals
from divprune_edge.models.towers.unused import is_unused
from divprune_edge.processing.image_input import ImageInput


def _modules(model: Any) -> dict[str, Any]:
    tower = model.model.vision_tower
    # transformers before 5 has one level more
    return {TOWER: getattr(tower, "vision_model", tower), PROJECTOR: model.model.multi_modal_projector}


def _visual_tokens(model: Any, process: Process, images: Sequence[ImageInput]) -> Sequence[Any]:
    pixels = process(np.concatenate([image.pixels for image in images]))["pixel_values"]
    features: Sequence[Any] = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    return features


def _processor(name: str | None) -> str:
    return re.sub(
        r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "ImageProcessorPil", name or "CLIPImageProcessor"
    )


def _signals(spec: LlavaSpec, model: Model, pixels: Pixels) -> dict[str, Array]:
    return expected_signals(
        spec.vision, partial(model.record, TOWER, pixels), partial(model.apply, PROJECTOR)
    )


def _unused(spec: LlavaSpec, config: Config, part: str, name: str) -> bool:
    feature = config.get("vision_feature_layer")
    return part == TOWER and is_unused(name, -2 if feature is None else feature, spec.vision.layers)


REFERENCE = Reference(
    model="LlavaForConditionalGeneration",
    processor=_processor,
    modules=_modules,
    visual_tokens=_visual_tokens,
    signals=_signals,
    unused=_unused,
)
