"""What families share whose images are cut into tiles ("anyres", Liu et al. 2024): all but the config's defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from divprune_edge.errors import UserError
from divprune_edge.manifest import Clips, Preprocessing, Tiling
from divprune_edge.models.families.family import Process, WeightNames
from divprune_edge.models.families.image_processor import (
    clip_sampling,
    processor_config,
    same_scale,
    valid_clips,
    video_config,
)
from divprune_edge.models.families.llava.family import LLAVA
from divprune_edge.models.families.llava.preprocessing import ProcessorKind, read_preprocessing
from divprune_edge.models.families.llava.reading import OF_TILES
from divprune_edge.models.families.llava.reference import REFERENCE
from divprune_edge.models.families.llava.spec import LlavaSpec
from divprune_edge.models.families.llava.weights import NAMING
from divprune_edge.models.files import CheckpointFiles, Config
from divprune_edge.processing.image_input import ImageInput

_USUAL_FRAMES = 32
"""Of a clip, where a checkpoint says nothing; what LLaVA-OneVision was evaluated with."""
_NEWLINE = ("model.image_newline", "image_newline")


def with_tiling(spec: LlavaSpec, config: Config, grids: Sequence[Sequence[int]], **facts: Any) -> LlavaSpec:
    """Return the spec with the config's grids, or ``grids`` where it has none; ``facts`` are Tiling's other fields.

    Raises:
        UserError: grids that are no sizes of whole tiles, or a tower whose tokens are no square.
    """
    side = spec.vision.image_size // spec.vision.patch_size
    if spec.tokens != side**2:
        raise UserError(
            f"The vision tower gives {spec.tokens} tokens for {side} x {side} patches, but the tokens of tiles are put "
            "together as squares: config.json's vision_feature_select_strategy does not fit its vision tower.",
            code="config-inconsistent",
        )
    said = config.get("image_grid_pinpoints")
    try:
        tiling = Tiling.model_validate(
            {"grids": grids if said is None else said, "tile": spec.vision.image_size, "side": side, **facts}
        )
    except ValidationError as error:
        raise UserError(
            f"config.json's image_grid_pinpoints cannot be used: {_first(error)}.",
            code="config-unsupported",
        ) from error
    return replace(spec, tiling=tiling)


def tiled_preprocessing(
    files: CheckpointFiles,
    spec: LlavaSpec,
    processor: Mapping[str, ProcessorKind],
    grids: Sequence[Sequence[int]],
) -> Preprocessing:
    """Return the image preprocessing of a checkpoint, by this processor, whose own grids are ``grids``.

    Raises:
        UserError: as :func:`read_preprocessing`, or other grids than the config's.
    """
    assert spec.tiling is not None
    facts = read_preprocessing(files, spec.vision.image_size, processor)
    said = processor_config(files).get("image_grid_pinpoints")
    cut, joined = _lists(grids if said is None else said), _lists(spec.tiling.grids)
    if cut != joined:
        raise UserError(
            f"The image processor's image_grid_pinpoints are {str(cut)[:80]}, but config.json's are "
            f"{str(joined)[:80]}: tiles would be cut in one way and put together in another.",
            code="image-processor-unsupported",
        )
    try:
        return Preprocessing.model_validate({**facts.model_dump(), "tiling": spec.tiling})
    except ValidationError as error:
        raise UserError(
            f"The image processor does not cut tiles for this vision tower: {_first(error)}.",
            code="image-processor-unsupported",
        ) from error


def _first(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def _lists(grids: Any) -> Any:
    """Return grids as JSON has them; what is no list of lists as it is."""
    return [_lists(one) for one in grids] if isinstance(grids, (list, tuple)) else grids


def tiled_sizes(spec: LlavaSpec) -> list[tuple[int, int]]:
    """Return sizes of images that have few tiles, and do not always fill them."""
    assert spec.tiling is not None
    grids = sorted(spec.tiling.grids, key=lambda grid: grid[0] * grid[1])
    few = [grids[i % len(grids)] for i in range(4)]
    return [(h - h // 5 * (i % 2), w - w // 7 * (i % 3)) for i, (h, w) in enumerate(few)]


def tiled_clips(
    files: CheckpointFiles, spec: LlavaSpec, frames: int, processor: Mapping[str, ProcessorKind]
) -> Clips:
    """Return the facts of clips, whose frames are a tile each.

    Raises:
        UserError: as :func:`read_preprocessing`, or frames are normalised in another way than images.
    """
    config, side = video_config(files, next(iter(processor))), spec.vision.image_size
    whole = {name: replace(kind, tiles=False) for name, kind in processor.items()}
    frame = read_preprocessing(files, side, whole, config)
    same_scale(frame, read_preprocessing(files, side, processor))
    sampling = clip_sampling(config, {"count": _USUAL_FRAMES})
    return valid_clips({"frames": frames, "frame": frame.model_dump(), "sampling": "even", **sampling})


def find_tiled_weights(names: Collection[str], tied: bool) -> WeightNames:
    """Return the naming of a checkpoint; arguments and errors as those of one tile."""
    newline = next((name for name in _NEWLINE if name in names), None)
    if newline is None:
        raise UserError(
            f"The checkpoint has no '{_NEWLINE[0]}', the row that ends a line of tiles: a shard is missing, download "
            "the checkpoint again.",
            code="weights-incomplete",
        )
    return replace(NAMING.find(names, tied), newline=newline)


def tiled_visual_tokens(model: Any, process: Process, images: Sequence[ImageInput]) -> Sequence[Any]:
    """Return what transformers' own model makes of the tiles of some images, or of a clip: a tensor [m, D] for each."""
    if images[0].captions is not None:
        frames = process(images[0].pixels)["pixel_values"][None]
        clip: Sequence[Any] = model.get_video_features(
            pixel_values_videos=frames, return_dict=True
        ).pooler_output
        return clip
    pixels = process(np.concatenate([image.pixels for image in images]))["pixel_values"]
    together = {} if images[0].alone else {"batch_num_images": pixels.new_tensor([len(images)]).long()}
    features: Sequence[Any] = model.get_image_features(
        pixel_values=pixels,
        image_sizes=pixels.new_tensor([image.size for image in images]).long(),
        return_dict=True,
        **together,
    ).pooler_output
    return features


TILED = replace(
    LLAVA,
    weight_names=find_tiled_weights,
    reader=OF_TILES,
    sample_sizes=tiled_sizes,
    reference=replace(
        REFERENCE, processor=lambda name: "CLIPImageProcessorPil", visual_tokens=tiled_visual_tokens
    ),
)
"""What these families are alike in; each has its own name, presets, spec, preprocessing and model to verify against."""
