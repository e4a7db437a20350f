"""Small clips, written by PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


def shades(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Return frames that are told apart by their brightness: 10 times their number."""
    return [np.full((*size, 3), 10 * i % 250, np.uint8) for i in range(count)]


def noise(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    return list(np.random.default_rng(5).integers(0, 256, (count, *size, 3), dtype=np.uint8))


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "mpeg4",
    rate: int = 10,
    times: Sequence[int] | None = None,
    keys: int = 5,
    **options: str,
) -> Path:
    """Write frames at ``rate``, or at ``times`` in milliseconds, with a key frame among every ``keys``."""
    import av

    container: Any = av.open(str(path), "w", options=options)
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt, stream.gop_size = "yuv420p", keys
    for i, pixels in enumerate(frames):
        frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = (
            (i, Fraction(1, rate)) if times is None else (times[i], Fraction(1, 1000))
        )
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    return path


def shades_in(frames: Any) -> list[int]:
    """Return the numbers of the :func:`shades` that frames show."""
    return [round(float(np.asarray(frame).mean()) / 10) for frame in frames]
