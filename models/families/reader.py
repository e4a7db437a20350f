"""How images and clips become what a family's encoder takes: all that an answer needs of a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from divprune_edge.manifest import Preprocessing
    from divprune_edge.processing.image_input import ImageInput
    from divprune_edge.processing.sources import Video


@dataclass(frozen=True)
class Reader:
    """What makes the encoder's input.

    Attributes:
        image: ``(RGB image, facts, height and width of a tile, whether it is its prompt's only image)``.
        clip: ``(clip, facts, height and width of a frame)``; None where the family takes no clips.
    """

    image: Callable[[Image.Image, Preprocessing, tuple[int, int] | None, bool], ImageInput]
    clip: Callable[[Video, Preprocessing, tuple[int, int] | None], ImageInput] | None = None
