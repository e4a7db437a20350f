"""What the Python API is given to look at: images and clips, none of them read yet."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from divprune_edge.arguments import check_type, wrong_type
from divprune_edge.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

    ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]
    Frames: TypeAlias = str | os.PathLike[str] | npt.NDArray[np.uint8] | Sequence[ImageSource]
    Media: TypeAlias = ImageSource | "Video"
    ImageSources: TypeAlias = Media | Sequence[Media] | None
    VideoSources: TypeAlias = Frames | "Video" | Sequence["Video"] | None


@dataclass(frozen=True, eq=False)
class Video:
    """A clip that a question is about.

    Attributes:
        source: path of a file or of a folder of frames, an array uint8 [T, H, W, 3], or a list of images.
        fps: how many of its frames a second to look at. Frames that are given one by one are all looked at; then it is
            their own rate.
        frames: how many frames to look at, spread evenly.
        on_frame: told how many of these are read, and of how many, before the first one and after each.
    """

    source: Frames
    fps: float | None = None
    frames: int | None = None
    on_frame: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        check_type("fps", self.fps, "float | None")
        check_type("frames", self.frames, "int | None")
        if self.on_frame is not None and not callable(self.on_frame):
            raise wrong_type("on_frame", self.on_frame, "a function that takes two numbers, or None")
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"fps is {self.fps}, expected more than 0.", code="fps-out-of-range")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames is {self.frames}, expected at least 1.", code="frames-out-of-range")

    @property
    def name(self) -> str:
        """What it is called in sentences."""
        return f"Clip '{self.source}'" if isinstance(self.source, (str, os.PathLike)) else "The clip"


def listed(images: ImageSources) -> list[Media]:
    """Return the images and clips that a question is about: none, one, or those of a list. An array is one image."""
    if images is None:
        return []
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        return [images]
    return list(images)


def clips_of(video: VideoSources, fps: float | None, frames: int | None) -> list[Video]:
    """Return the clips that a question is about: none, one, or those of a list of :class:`Video`.

    Raises:
        UserError: ``fps`` or ``frames`` is out of range, or there is nothing that it is for.
    """
    given: list[Any] = list(video) if isinstance(video, (list, tuple)) else [video]
    if video is None or any(isinstance(one, Video) for one in given):
        for what, value in (("fps", fps), ("frames", frames)):
            if value is not None:
                raise UserError(
                    f"{what} {value} is given, but no clip that it is for: leave it out, or say it of each Video.",
                    code="clip-option-misplaced",
                )
        for one in given if video is not None else ():
            if not isinstance(one, Video):
                raise wrong_type("video", one, "a Video, as others in the list are")
        return given if video is not None else []
    if not isinstance(video, (str, os.PathLike, np.ndarray, list, tuple)):
        raise wrong_type("video", video, "a path, an array, a list of frames, or None")
    return [Video(video, fps, frames)]
