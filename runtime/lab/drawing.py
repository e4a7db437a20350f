"""What is kept, drawn over the image: the rest dimmed, kept parts framed in the colour of their turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from divprune_edge.runtime.lab.inspection import Selection

SIDE = 576
"""The drawing's image is at least this wide, in pixels."""

_DIM = 0.35
_GAP = 8
_CELL = 12
"""Pixels of a part whose frame and inside can be told apart."""
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
    """Return an RGB image of the selection, with a caption and a colour scale below it.

    Where the encoder saw the image as a whole and in tiles, what is kept of either is drawn by itself.
    """
    image, fine = _scaled(selection), selection.places.fine
    if pruned := len(selection.picks) < selection.tokens:
        layers = [_frame(image, selection, fine == part) for part in np.unique(fine)]
        image = _beside(layers)
    if not caption:
        return image
    canvas = Image.new("RGB", (image.width, image.height + _STRIP), _PAPER)
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, image.height + 6), selection.caption, fill=_TEXT, font=_font(15))
    if pruned:
        _scale(draw, image.height + 28, image.width, "the whole image, then its tiles" if fine.any() else "")
    return canvas


def _scaled(selection: Selection) -> Image.Image:
    """Return the image in the size in which it is drawn: small cells can be told apart, and a photograph fits."""
    image, fine = Image.fromarray(selection.pixels), selection.places.fine
    if not fine.any():
        scale: float = max(1, -(-SIDE // image.width))
    else:
        top, left, bottom, right = selection.places.boxes[fine].T
        cells = [np.median((right - left)[right > left]), np.median((bottom - top)[bottom > top])]
        cell, longest = min(np.array(cells) * image.size), max(image.size)
        scale = np.clip(_CELL / cell, SIDE / longest, 2 * SIDE / longest)
    width, height = (max(round(edge * scale), 1) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _beside(layers: Sequence[Image.Image]) -> Image.Image:
    """Return one image of several of one size, side by side, or one below the other where they are wide."""
    width, height = layers[0].size
    across = height >= width
    step = (width + _GAP, 0) if across else (0, height + _GAP)
    last = len(layers) - 1
    canvas = Image.new("RGB", (width + last * step[0], height + last * step[1]), _PAPER)
    for i, layer in enumerate(layers):
        canvas.paste(layer, (i * step[0], i * step[1]))
    return canvas


def _frame(image: Image.Image, selection: Selection, drawn: npt.NDArray[np.bool_]) -> Image.Image:
    """Dim everything, put what is kept of the tokens ``drawn`` [N] back, and frame it."""
    pixels = np.asarray(image).astype(np.float64)
    grey = pixels.mean(axis=2, keepdims=True)
    dimmed: npt.NDArray[np.uint8] = (_DIM * (0.5 * pixels + 0.5 * grey)).astype(np.uint8)
    framed = Image.fromarray(dimmed)
    draw = ImageDraw.Draw(framed)
    turns = len(selection.picks)
    # Later picks first, so that an early one's frame is never hidden.
    for turn in range(turns - 1, -1, -1):
        token = int(selection.picks[turn])
        if token < 0 or not drawn[token]:
            continue
        box = _box(selection.places.boxes[token], image.size)
        left, top, right, bottom = box
        if left >= right or top >= bottom:
            continue
        framed.paste(image.crop(box), box)
        thick = 2 if min(right - left, bottom - top) >= _CELL - 1 else 1
        draw.rectangle((left, top, right - 1, bottom - 1), outline=turn_color(turn, turns), width=thick)
    return framed


def _box(edges: npt.NDArray[np.floating], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the pixels of a part; a rest that fills no patch stays at the right and at the bottom."""
    # Twice: a half is one, whatever the fractions' last digits.
    top, bottom = (round(round(float(edge) * size[1], 4)) for edge in edges[0::2])
    left, right = (round(round(float(edge) * size[0], 4)) for edge in edges[1::2])
    return left, top, right, bottom


def _scale(draw: ImageDraw.ImageDraw, top: int, width: int, note: str) -> None:
    """Draw the colours of the turns from first to last, and a note behind them."""
    font = _font(12)
    draw.text((8, top), "picked first", fill=_TEXT, font=font)
    left, right = 86, min(width - 90, 300)
    for x in range(left, right):
        draw.line((x, top + 2, x, top + 12), fill=turn_color(x - left, right - left))
    draw.text((right + 8, top), "last", fill=_TEXT, font=font)
    draw.text((right + 60, top), note, fill=_TEXT, font=font)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
