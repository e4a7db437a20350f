"""Images from outside, bounded before they are decoded and converted to RGB as transformers converts them.

- A file's EXIF orientation is applied, as ``transformers.image_utils.load_image`` does; an image object is
  taken with its pixels as they lie.
- Transparency is composited onto white, as ``transformers.image_transforms.convert_to_rgb`` does.
- An animation or a file with several pages counts with its first frame, and a warning is logged.
- 16-bit grey is scaled to 8 bit (0…65535 to 0…255); Pillow's own conversion, which transformers takes, would clip it to
  white. Where no value exceeds 255 it is 8-bit grey in a larger box, and stays as it is, as in transformers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from divprune_edge.errors import UserError, UserTypeError, either

if TYPE_CHECKING:
    import numpy.typing as npt

    from divprune_edge.processing.sources import ImageSource

MAX_BYTES = 64 << 20
MAX_SIDE = 16384
MAX_PIXELS = 64_000_000
"""Bounds on an image before it is decoded; the last one also bounds what it is resized to."""

CLIP_SUFFIXES = (
    ".avi",
    ".flv",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
)
# As they are named to people.
_FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
# Raster formats only: Pillow hands some others (EPS) to an external interpreter. The second row is tried only
# where the first does not fit, because it makes Pillow import all of its readers.
_COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")
_OTHERS = ("WEBP", "TIFF", "JPEG2000", "AVIF")
_EIGHT_BITS, _TWELVE_BITS = 255, 4095
# Two letters or more: one is a drive of Windows. A path has one slash left of the two.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:[^/]+/", re.IGNORECASE)
_DIMENSIONS = "it may have at most {} pixels a side and a total of {} million"

_log = logging.getLogger("divprune_edge")


def load_image(source: ImageSource, bgr: bool = False) -> Image.Image:
    """Return an image in mode RGB.

    Args:
        source: path of a file, a Pillow image, or a uint8 array [H, W, 3] (RGB) or [H, W] (grey).
        bgr: the array's channels are in the order blue, green, red (OpenCV's).

    Raises:
        UserError: no such file, not an image, damaged, too large, or an array of another shape or type.
    """
    if bgr and not isinstance(source, np.ndarray):
        raise UserError(
            "bgr describes an array's channels: leave it out for a file or a Pillow image.",
            code="image-bgr-misplaced",
        )
    if isinstance(source, np.ndarray):
        return _from_array(source, bgr)
    if isinstance(source, Image.Image):
        check_size(source.size, "The image")
        return _decode(source, "The image", upright=False)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    raise UserTypeError(
        f"An image is a path, a Pillow image or a uint8 array, not a {type(source).__name__}.",
        code="image-type-unsupported",
    )


def _from_array(array: npt.NDArray[Any], bgr: bool) -> Image.Image:
    grey = array.ndim == 2
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise UserError(
            f"The image is a {array.dtype} array of shape {list(array.shape)}, "
            "expected uint8 of shape [height, width, 3] or [height, width].",
            code="image-type-unsupported",
        )
    check_size((array.shape[1], array.shape[0]), "The image")
    return Image.fromarray(np.ascontiguousarray(array[..., ::-1] if bgr and not grey else array)).convert(
        "RGB"
    )


def refuse_address(source: str | os.PathLike[str]) -> None:
    """Refuse what is the address of an image and not a path.

    Raises:
        UserError: it is one.
    """
    text = os.fspath(source)
    if _ADDRESS.match(text):
        shown = re.sub(r":/+", "://", text[:80], count=1) + ("…" if len(text) > 80 else "")
        raise UserError(
            f"'{shown}' is an address, but images are read from files: download it first, and give the file's path.",
            code="image-is-address",
        )


def image_of_bytes(data: bytes, name: str, formats: tuple[str, ...], most_pixels: int) -> Image.Image:
    """Return the image in mode RGB that a file's bytes hold; an animation is refused.

    Args:
        data: of the file.
        name: what the image is called in sentences.
        formats: Pillow's names of those that it may have.
        most_pixels: that it may have.

    Raises:
        UserError: as for :func:`load_image`.
    """
    with _told(name, formats), Image.open(BytesIO(data), formats=formats) as image:
        check_size(image.size, name, most_pixels)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise UserError(f"{name} is an animation: send one of its frames.", code="image-animated")
        return _decode(image, name, upright=True)


def _from_file(path: Path) -> Image.Image:
    name = f"Image '{path}'"
    refuse_address(path)
    with _told(name, _FORMATS, is_clip=path.suffix.lower() in CLIP_SUFFIXES):
        try:
            size = path.stat().st_size
            if not path.is_file():
                raise UserError(
                    f"{name} is a folder or device: give the path of an image.", code="image-not-a-file"
                )
            if size > MAX_BYTES:
                raise UserError(
                    f"{name} has {size} bytes, at most {MAX_BYTES} are read: make it smaller.",
                    code="image-too-large",
                )
            with _open(path) as image:
                check_size(image.size, name)
                return _decode(image, name, upright=True)
        except FileNotFoundError:
            raise UserError(f"There is no image at '{path}': check the path.", code="image-missing") from None


@contextlib.contextmanager
def _told(name: str, formats: Sequence[str], *, is_clip: bool = False) -> Iterator[None]:
    """Tell in a sentence what reading an image raises; ``is_clip``: by its name it is none."""
    try:
        with warnings.catch_warnings():
            # Of bombs, for which the bounds here are tighter, and of metadata, which does not matter.
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError:
        if is_clip:
            raise UserError(
                f"{name} is a clip, expected an image: 'ask' takes it as --video, 'batch' as \"video\"; nothing else "
                "looks at clips.",
                code="image-is-clip",
            ) from None
        raise UserError(
            f"{name} is in no format that is read here: use {either(formats)}.",
            code="image-format-unknown",
        ) from None
    except Image.DecompressionBombError as error:
        pixels = next(iter(re.findall(r"\d+", str(error))), "too many")
        raise UserError(
            f"{name} has {pixels} pixels, {_limits(MAX_PIXELS)}: make it smaller.", code="image-too-large"
        ) from None
    except OSError as error:
        raise UserError(
            f"{name} cannot be read ({error.strerror or one_line(error)}).", code="image-unreadable"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged header makes Pillow's readers raise nearly anything
        raise UserError(
            f"{name} is damaged ({one_line(error)}): get a complete copy.", code="image-damaged"
        ) from None


def _open(path: Path) -> Image.Image:
    Image.preinit()
    try:
        return Image.open(path, formats=_COMMON)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(path, formats=[name for name in _OTHERS if name in Image.OPEN])


def check_size(size: tuple[int, int], name: str, most_pixels: int | None = None) -> None:
    """Refuse a (width, height) that is too large; None: by the bound on all images.

    Raises:
        UserError: it is.
    """
    width, height = size
    most_pixels = MAX_PIXELS if most_pixels is None else most_pixels
    if max(size) > MAX_SIDE or width * height > most_pixels:
        raise UserError(
            f"{name} has {width} x {height} pixels, {_limits(most_pixels)}: make it smaller.",
            code="image-too-large",
        )


def _limits(pixels: int) -> str:
    return _DIMENSIONS.format(MAX_SIDE, f"{pixels / 1_000_000:g}")


def _decode(image: Image.Image, name: str, upright: bool) -> Image.Image:
    try:
        image.load()
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image, name)
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise UserError(
            f"{name} is damaged or truncated ({one_line(error)}): get a complete copy.", code="image-damaged"
        ) from None
    frames = 1
    with contextlib.suppress(Exception):  # counting walks through the file, which may be cut after the first
        frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photo with a preview or a depth map in it
        _log.warning("%s holds %d frames: the first one is used.", name, frames)
    return rgb


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        wide = np.asarray(image).astype(np.uint32)
        most = int(wide.max(initial=0))
        if most <= _EIGHT_BITS:
            return Image.fromarray(wide.astype(np.uint8)).convert("RGB")
        if most <= _TWELVE_BITS:
            _log.warning(
                "%s has 16 bits, of which its values up to %d fill %d: it is dark; scale it to 16 or to 8 bits.",
                name,
                most,
                most.bit_length(),
            )
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def one_line(error: Exception) -> str:
    """Return what a decoder says, short and in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
