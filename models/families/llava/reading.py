"""Images of the LLaVA line: one tile, or the tiles of a grid; and clips, whose frames are a tile each."""

from __future__ import annotations

import numpy as np
from PIL import Image

from divprune_edge.manifest import Preprocessing
from divprune_edge.models.families.reader import Reader
from divprune_edge.processing.anyres import to_tiles
from divprune_edge.processing.assembly import assembly, clip_assembly
from divprune_edge.processing.clips import load_clip
from divprune_edge.processing.image_input import ONE_SPAN, ImageInput
from divprune_edge.processing.preprocess import encoder_pixels
from divprune_edge.processing.sources import Video

__all__ = ["OF_ONE_TILE", "OF_TILES", "OF_TILES_AND_FRAMES"]


def _one_tile(
    image: Image.Image, facts: Preprocessing, size: tuple[int, int] | None, alone: bool
) -> ImageInput:
    assert size is not None
    return ImageInput(encoder_pixels(image, facts, *size), (image.height, image.width), alone=alone)


def _tiles(image: Image.Image, facts: Preprocessing, size: tuple[int, int] | None, alone: bool) -> ImageInput:
    """Return the tiles of an image, and how their tokens become its rows.

    Raises:
        UserError: the image is too elongated.
    """
    assert facts.tiling is not None and size is not None
    rows = assembly(image.height, image.width, facts.tiling, alone=alone)
    return ImageInput(
        to_tiles(image, facts, *size, alone=alone), (image.height, image.width), rows, alone=alone
    )


def _frames(video: Video, facts: Preprocessing, size: tuple[int, int] | None) -> ImageInput:
    """Return the frames of a clip, a tile each, and how their tokens become its rows.

    Raises:
        UserError: the clip cannot be read.
    """
    assert facts.clips is not None and facts.tiling is not None and size is not None
    clip, shape, frame = load_clip(video, facts.clips), (0, 0), facts.clips.frame
    tiles = []
    for image in clip.frames:
        tiles.append(encoder_pixels(image, frame, *size))
        shape = image.height, image.width
    rows = clip_assembly(len(tiles), facts.tiling.side)
    return ImageInput(np.concatenate(tiles), shape, rows, captions=ONE_SPAN)


OF_ONE_TILE = Reader(_one_tile)
OF_TILES = Reader(_tiles)
OF_TILES_AND_FRAMES = Reader(_tiles, _frames)
