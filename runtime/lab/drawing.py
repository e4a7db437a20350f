"""Kept patches drawn over the image: dropped ones dimmed, kept ones framed in the colour of their turn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from divprune_edge.runtime.lab.inspection import Selection

SIDE = 576
"""The drawing's image is at least this wide, in pixels."""

_DIM = 0.35
_STRIP = 46
_TEXT, _PAPER = (235, 235, 235), (24, 24, 27)

# From the first pick to the last: yellow, orange, magenta, violet. Even in brightness steps, also in grey.
_RAMP = np.array([(255, 236, 84), (252, 157, 62), (225, 72, 110), (123, 50, 190)], np.float64)


def turn_color(turn: int, turns: int) -> tuple[int, int, int]:
    """Return the colour of pick number ``turn`` of ``turns``."""
    place = 0.0 if turns < 2 else turn / (turns - 1) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    red, green, blue = _RAMP[low] + (place - low) * (_RAMP[low + 1] - _RAMP[low])
    return round(red), round(green), round(blue)


def draw_selection(selection: Selection, *, caption: bool = True) -> Image.Image:
    """Return an RGB image of the selection, with a caption and a colour scale below it."""
    height, width = selection.pixels.shape[:2]
    scale = max(1, -(-SIDE // width))
    image = Image.fromarray(selection.pixels).resize(
        (width * scale, height * scale), Image.Resampling.LANCZOS
    )
    if len(selection.picks) < selection.tokens:
        image = _frame(image, selection)
    if not caption:
        return image
    canvas = Image.new("RGB", (image.width, image.height + _STRIP), _PAPER)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, image.height + 6), selection.caption, fill=_TEXT, font=_font(15))
    if len(selection.picks) < selection.tokens:
        _scale(draw, image.height + 28, image.width)
    return canvas


def _frame(image: Image.Image, selection: Selection) -> Image.Image:
    """Dim everything, put the kept patches back, and frame them."""
    pixels = np.asarray(image).astype(np.float64)
    grey = pixels.mean(axis=2, keepdims=True)
    dimmed: npt.NDArray[np.uint8] = (_DIM * (0.5 * pixels + 0.5 * grey)).astype(np.uint8)
    framed = Image.fromarray(dimmed)
    draw = ImageDraw.Draw(framed)
    turns = len(selection.picks)
    # Later picks first, so that an early one's frame is never hidden.
    for turn in range(turns - 1, -1, -1):
        patch = int(selection.picks[turn]) - selection.first
        if patch < 0:
            continue
        box = _box(patch, selection.patches, image.size)
        framed.paste(image.crop(box), box)
        left, top, right, bottom = box
        draw.rectangle((left, top, right - 1, bottom - 1), outline=turn_color(turn, turns), width=2)
    return framed


def _box(patch: int, patches: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels of a patch; a rest that fills no patch stays at the right and at the bottom."""
    row, column = divmod(patch, patches)
    wide, high = size[0] / patches, size[1] / patches
    return round(column * wide), round(row * high), round((column + 1) * wide), round((row + 1) * high)


def _scale(draw: ImageDraw.ImageDraw, top: int, width: int) -> None:
    """Draw the colours of the turns from first to last."""
    font = _font(12)
    draw.text((8, top), "picked first", fill=_TEXT, font=font)
    left, right = 86, min(width - 90, 300)
    for x in range(left, right):
        draw.line((x, top + 2, x, top + 12), fill=turn_color(x - left, right - left))
    draw.text((right + 8, top), "last", fill=_TEXT, font=font)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
