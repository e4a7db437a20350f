"""A clip's file, read by PyAV: when its frames are shown, by its packets, and those that are asked for.

These are decoded one by one, as their turn comes, from the last key frame before each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.errors import UserError
from divprune_edge.processing.images import MAX_PIXELS, check_size, one_line

MAX_CLIP_BYTES = 2 << 30
MAX_SECONDS = 2 * 3600
MAX_CLIP_FRAMES = 500_000
"""Bounds on a clip before it is decoded; images' own hold for each frame."""
GIVEN_RATE = 2.0
"""Of frames that come without one; as fast as most checkpoints look at a clip."""

# None of them opens other files or addresses, as playlists do.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,gif"
_CODECS = (
    "h264,hevc,av1,libdav1d,vp8,vp9,libvpx,libvpx-vp9,mpeg4,mpeg1video,mpeg2video,msmpeg4v3,h263,flv,mjpeg,theora,"
    "wmv1,wmv2,wmv3,vc1,prores,dnxhd,gif,png,ffv1,rawvideo"
)

_log = logging.getLogger("divprune_edge")


def index_of(path: Path, name: str) -> FrameIndex:
    """Return what a file's packets say of its frames.

    Raises:
        UserError: no such file, not a clip, damaged, too large or too long, or PyAV is not installed.
    """
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
        return FrameIndex.of(container, stream, name)


@dataclass(frozen=True, eq=False)
class FrameIndex:
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
    def of(cls, container: Any, stream: Any, name: str) -> FrameIndex:
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
                raise too_long(name, f"more than {MAX_CLIP_FRAMES} frames")
            times.append(time)
            if packet.is_keyframe:
                keys.append((time, time if packet.dts is None else packet.dts))
        if not times or not keys:
            raise empty_clip(name)
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
            _log.warning("%s has frames for a part of it alone, or is truncated: the last one %s.", name, cut)
        if seconds > MAX_SECONDS:
            raise too_long(name, f"{seconds:.0f} s")
        stated = float(stream.average_rate or 0)
        counted = (len(times) - 1) / seconds if seconds > 0 else stated or GIVEN_RATE
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


def decoded(path: Path, index: FrameIndex, chosen: Sequence[int], name: str) -> Iterator[Image.Image]:
    """Decode the frames of a file that these numbers stand for at its rate, each when its turn comes.

    Raises:
        UserError: the file is damaged, or a frame is too large.
    """
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
                raise empty_clip(name)
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
                raise too_long(name, f"{seconds:.0f} s")
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


def empty_clip(name: str) -> UserError:
    """Return what is said of a clip without frames."""
    return UserError(f"{name} has no frames: give one with a video stream.", code="clip-empty")


def too_long(name: str, length: str) -> UserError:
    """Return what is said of a clip of such a length."""
    return UserError(
        f"{name} has {length}, at most {MAX_SECONDS // 3600} hours and {MAX_CLIP_FRAMES} frames are read: cut out the "
        "part to ask about.",
        code="clip-too-long",
    )
