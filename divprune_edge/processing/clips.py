"""Clips from outside: a few frames of each, bounded before they are decoded.

Which frames, transformers' video processors decide by a clip's length and its rate: frame i is the one shown at i /
rate seconds, which in a file of a variable rate is the nearest by time stamp. Frames are decoded one by one, as they
are asked for, from the last key frame before each.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.arguments import wrong_type
from divprune_edge.errors import UserError
from divprune_edge.manifest import Clips
from divprune_edge.processing.images import MAX_PIXELS, check_size, load_image, one_line, refuse_address
from divprune_edge.processing.sources import Video

if TYPE_CHECKING:
    from divprune_edge.processing.sources import ImageSource

MAX_CLIP_BYTES = 2 << 30
MAX_SECONDS = 2 * 3600
MAX_CLIP_FRAMES = 500_000
"""Bounds on a clip before it is decoded; images' own hold for each frame."""
_GIVEN_RATE = 2.0
"""Of frames that come without one; as fast as most checkpoints look at a clip."""

# None of them opens other files or addresses, as playlists do.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"
_CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg1video,mpeg2video,msmpeg4v3,h263,flv,mjpeg,theora,"
    "wmv1,wmv2,wmv3,vc1,prores,dnxhd,gif,png,ffv1,rawvideo"
)

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
    total, rate = len(frames), float(video.fps or facts.fps or _GIVEN_RATE)
    if total < 1 or total > MAX_CLIP_FRAMES:
        raise _empty(video.name) if not total else _too_long(video.name, f"{total} frames")
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
    name = video.name
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{name} is a device: give the path of a file.", code="clip-not-a-file")
    except OSError as error:
        raise (
            UserError(f"There is no clip at '{path}': check the path.", code="clip-missing")
            if isinstance(error, FileNotFoundError)
            else UserError(f"{name} cannot be read ({error.strerror or error}).", code="clip-unreadable")
        ) from None
    if size > MAX_CLIP_BYTES:
        raise UserError(
            f"{name} has {size} bytes, at most {MAX_CLIP_BYTES} are read: cut out the part to ask about.",
            code="clip-too-large",
        )
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{name} is read by PyAV, which is not here ({error}): 'python -m pip install av'; or give its frames, "
            "as a folder of images.",
            code="video-not-installed",
        ) from None
    with _damage(name), _opened(path, name) as (container, stream):
        index = _Index.of(container, stream, name)
    indices = sample(len(index.times), index.rate, facts, video)
    return _clip(
        lambda chosen: _decoded(path, index, chosen, name), indices, len(index.times), index.rate, video
    )


@dataclass(frozen=True, eq=False)
class _Index:
    """What a file's packets say, without decoding any.

    Attributes:
        times: of each frame, in the stream's units, ascending.
        keys: of the key frames, and where to seek to for each.
        rate: frames a second; one that the file states counts where its time stamps agree.
        tick: seconds of a unit.
    """

    times: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    rate: float
    tick: float

    @classmethod
    def of(cls, container: Any, stream: Any, name: str) -> _Index:
        """Read it.

        Raises:
            UserError: too many frames, or none, or some without a time.
        """
        times: list[int] = []
        keys: list[tuple[int, int]] = []
        for packet in container.demux(stream):
            if not packet.size:
                continue
            time = packet.dts if packet.pts is None else packet.pts
            if time is None:
                raise UserError(
                    f"{name} has frames without a time stamp: convert it to MP4.", code="clip-damaged"
                )
            if len(times) == MAX_CLIP_FRAMES:
                raise _too_long(name, f"more than {MAX_CLIP_FRAMES} frames")
            times.append(time)
            if packet.is_keyframe:
                keys.append((time, time if packet.dts is None else packet.dts))
        if not times or not keys:
            raise _empty(name)
        if stream.frames > len(times):
            raise UserError(
                f"{name} is truncated: {len(times)} of its {stream.frames} frames are there; get a complete copy.",
                code="clip-damaged",
            )
        tick, ordered = float(stream.time_base or 1), np.sort(np.array(times, np.int64))
        seconds = float(ordered[-1] - ordered[0]) * tick
        whole = float(container.duration or 0) / 1e6
        if seconds + 1 < whole * 0.9:
            cut = f"ends after {seconds:.1f} of {whole:.1f} s"
            if len(container.streams) == 1:
                raise UserError(f"{name} is truncated: it {cut}; get a complete copy.", code="clip-damaged")
            _log.warning(
                "%s has pictures for a part of it alone, or is truncated: the last one %s.", name, cut
            )
        if seconds > MAX_SECONDS:
            raise _too_long(name, f"{seconds:.0f} s")
        stated = float(stream.average_rate or 0)
        counted = (len(times) - 1) / seconds if seconds > 0 else stated or _GIVEN_RATE
        near = stated > 0 and abs(stated / counted - 1) < 0.02
        return cls(ordered, np.array(sorted(keys), np.int64), stated if near else counted, tick)

    def shown(self, frame: int) -> int:
        """Return the time of the frame that is shown at ``frame`` / rate seconds, or of the nearest."""
        wanted = self.times[0] + frame / self.rate / self.tick
        return int(self.times[np.abs(self.times - wanted).argmin()])

    def key(self, time: int) -> tuple[int, int]:
        """Return the time of the last key frame up to that, and where to seek to for it."""
        at = max(int(np.searchsorted(self.keys[:, 0], time, side="right")) - 1, 0)
        return int(self.keys[at, 0]), int(self.keys[at, 1])


def _decoded(path: Path, index: _Index, chosen: Sequence[int], name: str) -> Iterator[Image.Image]:
    with _damage(name), _opened(path, name) as (container, stream):
        frames, current, at = iter(()), None, -math.inf
        for wanted in map(index.shown, chosen):
            key, place = index.key(wanted)
            for start in (place, int(min(index.times[0], index.keys[0, 1]))):
                if current is None or key > at or at > wanted:
                    container.seek(start, stream=stream)
                    frames, current, at = container.decode(stream), None, -math.inf
                while at < wanted and (frame := next(frames, None)) is not None:
                    current, at = frame, frame.dts if frame.pts is None else frame.pts
                if at == wanted:
                    break
            # Some packets show no frame of their own: one beside it is as good.
            if current is None or abs(at - wanted) * index.tick * index.rate > 2.5:
                raise UserError(
                    f"{name} is damaged: there is no frame at {(wanted - index.times[0]) * index.tick:.1f} s; get a "
                    "complete copy.",
                    code="clip-damaged",
                )
            check_size((current.width, current.height), _frame_of(name))
            image = current.to_image()
            turn = _TURNS.get(current.rotation % 360)
            yield image if turn is None else image.transpose(turn)


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """Open a file and its first video stream; the file alone, whatever it says of others.

    Raises:
        UserError: not a clip, or one that is too long or too large.
    """
    import av

    options = {"format_whitelist": _FORMATS, "codec_whitelist": _CODECS, "max_pixels": str(MAX_PIXELS)}
    with path.open("rb") as file:
        try:
            container = av.open(file, options=options, metadata_errors="replace")
        except Exception as error:
            raise UserError(
                f"{name} is not a clip that can be read ({_reason(error)}): use MP4, WebM, MKV, MOV or AVI.",
                code="clip-format-unknown",
            ) from None
        with container:
            found = [
                one
                for one in container.streams.video
                if not one.disposition & av.stream.Disposition.attached_pic
            ]
            if not found:
                raise _empty(name)
            stream = found[0]
            if stream.codec_context is None or stream.codec_context.name not in _CODECS.split(","):
                codec = "unknown" if stream.codec_context is None else stream.codec_context.name
                raise UserError(
                    f"{name} has frames in the format '{codec}', which is not read: convert it to H.264.",
                    code="clip-format-unknown",
                )
            check_size((stream.codec_context.width, stream.codec_context.height), _frame_of(name))
            seconds = max(
                float(container.duration or 0) / av.time_base,
                float((stream.duration or 0) * (stream.time_base or 0)),
            )
            if seconds > MAX_SECONDS:
                raise _too_long(name, f"{seconds:.0f} s")
            yield container, stream


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Tell in a sentence what a decoder makes of damaged data."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise nearly anything
        raise UserError(
            f"{name} is damaged or truncated ({_reason(error)}): get a complete copy.", code="clip-damaged"
        ) from None


def _frame_of(name: str) -> str:
    return f"A frame of {name[0].lower()}{name[1:]}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or one_line(error))


def _empty(name: str) -> UserError:
    return UserError(f"{name} has no frames: give one with pictures in it.", code="clip-empty")


def _too_long(name: str, length: str) -> UserError:
    return UserError(
        f"{name} has {length}, at most {MAX_SECONDS // 3600} hours and {MAX_CLIP_FRAMES} frames are read: cut out the "
        "part to ask about.",
        code="clip-too-long",
    )
