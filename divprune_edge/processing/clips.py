"""Clips from outside: a few frames of each, bounded before they are decoded.

Which frames, transformers' video processors decide by a clip's length and its rate: frame i is the one shown at i /
rate seconds, which in a file of a variable rate is the nearest by time stamp.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.arguments import wrong_type
from divprune_edge.errors import UserError
from divprune_edge.manifest import Clips
from divprune_edge.processing.images import load_image, refuse_address
from divprune_edge.processing.sources import Video
from divprune_edge.processing.video_file import (
    GIVEN_RATE,
    MAX_CLIP_FRAMES,
    decoded,
    empty_clip,
    index_of,
    too_long,
)

if TYPE_CHECKING:
    from divprune_edge.processing.sources import ImageSource

_log = logging.getLogger("divprune_edge")


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of a clip that are looked at, RGB and of one size.

    Attributes:
        frames: decoded when their turn comes.
        times: of each, in seconds.
        rate: how many of these there are a second.
    """

    frames: Iterator[Image.Image]
    times: tuple[float, ...]
    rate: float


def load_clip(video: Video, facts: Clips) -> Clip:
    """Return the frames of a clip that these facts choose.

    Raises:
        UserError: no such file, not a clip, damaged, too large or too long, or PyAV is not installed; some of it when a
            frame is asked for.
    """
    source = video.source
    if isinstance(source, (str, os.PathLike)):
        refuse_address(source)
        path = Path(source)
        return (
            _of_frames(video, _in_folder(path, video.name), facts)
            if path.is_dir()
            else _of_file(video, path, facts)
        )
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.dtype != np.uint8 or source.shape[3] != 3:
            raise UserError(
                f"The clip is a {source.dtype} array of shape {list(source.shape)}, expected uint8 of shape [frames, "
                "height, width, 3].",
                code="clip-type-unsupported",
            )
    elif not isinstance(source, (list, tuple)):
        raise wrong_type("video", source, "a path, an array or a list of frames")
    return _of_frames(video, source, facts)


def sample(total: int, rate: float, facts: Clips, video: Video) -> npt.NDArray[np.int64]:
    """Return which frames of a clip are looked at, ascending; as the video processors' ``sample_frames``, each its way.

    Raises:
        UserError: more are asked for than the bundle takes.
    """
    if video.fps is not None and video.frames is not None:
        raise UserError(
            f"fps {video.fps} and frames {video.frames} both say how many frames to look at: give one of them.",
            code="clip-sampling",
        )
    count, fps = (video.frames, video.fps) if video.frames or video.fps else (facts.count, facts.fps)
    if video.frames is not None and video.frames > facts.frames:
        raise UserError(
            f"{video.frames} frames are asked for, but the bundle takes at most {facts.frames} of a clip: ask for "
            "fewer, or export with a larger --frames.",
            code="clip-frames-out-of-range",
        )
    step = facts.step
    if count is not None:
        wanted = float(round(count / step) * step)
    else:
        assert fps is not None
        wanted = total / rate * fps
        if facts.sampling != "steps":
            wanted = int(wanted)
        wanted = min(max(wanted, facts.min_frames), facts.max_frames)
    most = min(total, facts.frames) // step * step
    if wanted > facts.frames:
        _log.warning(
            "%s is looked at in %d frames, the most that the bundle takes, instead of %d: export with a larger "
            "--frames for more.",
            video.name,
            most,
            wanted,
        )
    chosen = max(math.floor(min(wanted, most) / step) * step, 1)
    if facts.sampling == "even":
        return np.arange(chosen) * total // chosen
    if facts.sampling == "steps":  # in single precision, as there
        steps = (np.arange(chosen) * (total / chosen)).astype(np.float32)
        return np.minimum(steps.astype(np.int64), total - 1)
    return np.linspace(0, total - 1, chosen).round().astype(np.int64)


def _clip(
    frames: Callable[[Sequence[int]], Iterable[Image.Image]],
    indices: npt.NDArray[np.int64],
    total: int,
    rate: float,
    video: Video,
) -> Clip:
    chosen = indices.tolist()
    return Clip(
        _told(_of_one_size(frames(chosen), video.name), len(chosen), video.on_frame),
        tuple(index / rate for index in chosen),
        len(chosen) / total * rate,
    )


def _told(
    frames: Iterator[Image.Image], total: int, on_frame: Callable[[int, int], None] | None
) -> Iterator[Image.Image]:
    if on_frame is None:
        yield from frames
        return
    on_frame(0, total)
    for number, frame in enumerate(frames, start=1):
        on_frame(number, total)
        yield frame


def _of_one_size(frames: Iterable[Image.Image], name: str) -> Iterator[Image.Image]:
    size = None
    for number, frame in enumerate(frames):
        size = size or frame.size
        if frame.size != size:
            raise UserError(
                f"{name} has frames of {size[0]} x {size[1]} and of {frame.width} x {frame.height} pixels (frame "
                f"{number} of those looked at), expected one size: scale them first.",
                code="clip-frame-sizes",
            )
        yield frame


def _in_folder(path: Path, name: str) -> list[Path]:
    """Return the frames in a folder, by name, where 10 comes after 9."""
    try:
        found = [file for file in path.iterdir() if not file.name.startswith(".") and file.is_file()]
    except OSError as error:
        raise UserError(
            f"{name} cannot be read ({error.strerror or error}).", code="clip-unreadable"
        ) from None

    def order(file: Path) -> tuple[list[Any], str]:
        parts = re.split(r"([0-9]+)", file.name)
        return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], file.name

    return sorted(found, key=order)


def _of_frames(video: Video, frames: Sequence[ImageSource] | npt.NDArray[np.uint8], facts: Clips) -> Clip:
    """Return frames that are given one by one: all, unless a number is asked for."""
    total, rate = len(frames), float(video.fps or facts.fps or GIVEN_RATE)
    if total < 1 or total > MAX_CLIP_FRAMES:
        raise empty_clip(video.name) if not total else too_long(video.name, f"{total} frames")
    if video.frames is None and total > facts.frames:
        raise UserError(
            f"{video.name} has {total} frames, but the bundle takes at most {facts.frames}: say how many to look at "
            "(frames), or export with a larger --frames.",
            code="clip-frames-out-of-range",
        )
    indices = (
        np.arange(total)
        if video.frames is None
        else sample(total, rate, facts, Video(video.source, frames=min(video.frames, total)))
    )
    return _clip(lambda chosen: (load_image(frames[i]) for i in chosen), indices, total, rate, video)


def _of_file(video: Video, path: Path, facts: Clips) -> Clip:
    index = index_of(path, video.name)
    total = len(index.times)
    indices = sample(total, index.rate, facts, video)
    return _clip(lambda chosen: decoded(path, index, chosen, video.name), indices, total, index.rate, video)
