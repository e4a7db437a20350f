"""How transformers' own Qwen-VL is reached."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from divprune_edge.models.families.family import Process, Reference
from divprune_edge.models.families.qwen_vl.model import QwenSpec
from divprune_edge.models.families.qwen_vl.spec import DEEPSTACK_MERGERS, TOWER
from divprune_edge.models.files import Config
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.patches import AXES


def _visual_tokens(model: Any, process: Process, images: Sequence[ImageInput]) -> Sequence[Any]:
    """Return rows as the graph gives them, a tensor [m, D · (1 + stacked)] for each image."""
    found = []
    for image in images:
        patches = image.pixels.reshape(-1, image.pixels.shape[2])
        # As an image whose columns are a patch's pixels, for a processor that scales each channel by its own numbers.
        columns = patches.reshape(len(patches), 3, -1).transpose(0, 2, 1)
        pixels = process(columns[None])["pixel_values"][0].permute(1, 0, 2).reshape(len(patches), -1)
        grid = pixels.new_tensor([len(image.pixels), *(image.further[AXES].max(axis=0) + 1).tolist()]).long()
        out = model.get_image_features(pixel_values=pixels, image_grid_thw=grid[None], return_dict=True)
        parts = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
        rows = [part[0] for part in parts]
        both = rows[0].new_empty(len(rows[0]), len(rows), rows[0].shape[1])
        for i, part in enumerate(rows):
            both[:, i] = part
        found.append(both.flatten(1))
    return found


def _unused(spec: QwenSpec, config: Config, part: str, name: str) -> bool:
    """Mergers for layers that the tower does not have."""
    found = re.match(rf"{DEEPSTACK_MERGERS}\.(\d+)\.", name)
    return part == TOWER and found is not None and int(found.group(1)) >= spec.stacked


def qwen_reference(model: str) -> Reference[QwenSpec]:
    """Return how a model of that class is reached."""
    return Reference(
        model=model,
        processor=lambda name: "CLIPImageProcessorPil",
        modules=lambda whole: {TOWER: whole.model.visual},
        visual_tokens=_visual_tokens,
        signals=lambda spec, whole, pixels: {},
        unused=_unused,
    )
