"""An image to the vision encoder's uint8 input, bit for bit as ``CLIPImageProcessorPil`` makes it.

Only what happens to 8-bit pixels is done here (pad, resize, centre crop); rescale, mean and std are the first
nodes of the vision graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune_edge.errors import UserError
from divprune_edge.manifest import Preprocessing
from divprune_edge.processing.images import MAX_PIXELS


def encoder_pixels(
    image: Image.Image, facts: Preprocessing, height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Return an RGB image as a vision encoder of that size takes it, uint8 [1, H, W, 3].

    Raises:
        UserError: the image is too elongated, or does not become of the encoder's size.
    """
    pixels = to_pixels(image, facts)
    if pixels.shape[1:3] != (height, width):
        raise UserError(
            f"The image becomes {pixels.shape[2]} x {pixels.shape[1]} pixels, but the vision encoder "
            f"takes {width} x {height}: crop it to that shape first.",
            code="image-shape-unfit",
        )
    return pixels


def to_pixels(image: Image.Image, facts: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return ``pixels`` uint8 [1, H, W, 3] of an RGB image.

    Raises:
        UserError: the image is so elongated that resizing its short edge would need too much memory.
    """
    if facts.pad_to_square:
        image = _pad_to_square(image, facts.mean)
    if facts.resize != "none":
        height, width = _resized(image, facts)
        check_pixels(image, (height, width), "resized")
        image = image.resize((width, height), resample=Image.Resampling(facts.resample))
    pixels = np.asarray(image)
    if facts.crop_height is not None and facts.crop_width is not None:
        pixels = _center_crop(pixels, facts.crop_height, facts.crop_width)
    return np.ascontiguousarray(pixels)[None]


def check_pixels(image: Image.Image, size: tuple[int, int], verb: str) -> None:
    """Refuse an image that would become of a ``size`` (height, width) that is no image's, or too large a one's.

    Raises:
        UserError: it would.
    """
    height, width = size
    if min(size) < 1:
        raise UserError(
            f"The image of {image.width} x {image.height} pixels is too elongated: {verb} it would have {width} x "
            f"{height} pixels; crop it.",
            code="image-too-elongated",
        )
    if height * width > MAX_PIXELS:
        raise UserError(
            f"The image of {image.width} x {image.height} pixels is too elongated: {verb} it would "
            f"have {width} x {height} pixels, at most {MAX_PIXELS // 1_000_000} million are allowed; crop it.",
            code="image-too-elongated",
        )


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    """Put the image in the middle of a square of the mean colour (LLaVA's ``expand2square``)."""
    side = max(image.size)
    if image.width == image.height:
        return image
    check_pixels(image, (side, side), "padded to a square")
    square = Image.new(
        "RGB", (side, side), tuple(int(m * 255) for m in mean)
    )  # truncated, as in the original
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resized(image: Image.Image, facts: Preprocessing) -> tuple[int, int]:
    """Return (height, width) after the resize; the long edge is truncated, not rounded.

    With a bound on the long edge, transformers goes another way (``get_size_with_aspect_ratio``): the short edge is
    rounded, and the long one follows from what it was before. In floating point, as there.
    """
    if facts.resize == "exact" and facts.resize_height is not None and facts.resize_width is not None:
        return facts.resize_height, facts.resize_width
    edge = facts.shortest_edge or min(image.size)
    width, height = image.size
    if facts.longest_edge is not None:
        short, long, scale = min(image.size), max(image.size), float(edge)
        if float(long) / float(short) * edge > facts.longest_edge:
            scale = facts.longest_edge * float(short) / float(long)
            edge = round(scale)
        if short == edge:
            return height, width
        return (int(scale * height / width), edge) if width < height else (edge, int(scale * width / height))
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _center_crop(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Cut [height, width] out of the middle of pixels [H, W, 3], with black where the image is smaller.

    The offset of a cut is rounded down, that of an image on black is rounded up.
    """
    top, top_pad = _placement(pixels.shape[0], height)
    left, left_pad = _placement(pixels.shape[1], width)
    if not (top_pad or left_pad):
        return pixels[top : top + height, left : left + width]
    canvas = np.zeros((height, width, 3), np.uint8)
    cut = pixels[top : top + height, left : left + width]
    canvas[top_pad : top_pad + cut.shape[0], left_pad : left_pad + cut.shape[1]] = cut
    return canvas


def _placement(size: int, target: int) -> tuple[int, int]:
    """Return (first pixel taken, first pixel of the canvas it lands on) along one axis."""
    start = (size - target) // 2
    return (start, 0) if start >= 0 else (0, -start)
