"""Scene to pixels: signed distances give anti-aliased shapes at any size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .scenes import EXTENT, Object, Scene, Sign

IMAGE_SIZE = 96
PATCH = 4
GRID = IMAGE_SIZE // PATCH

BACKGROUND, SIGN, UNCLEAR = 0, 100, 255
"""Labels of `render_with_owners`; object i of the scene has label i + 1, digit j of the sign 101 + j."""

Floats = NDArray[np.float32]


def render(scene: Scene, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Draw a scene as RGB uint8 [size, size, 3]."""
    return _draw(scene, size)[0]


def render_with_owners(scene: Scene, size: int = IMAGE_SIZE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw at a size and say what each patch shows.

    Returns pixels uint8 [size, size, 3] and owners uint8 [(size / 4)²] in raster order: the thing that covers
    at least 30 % of the patch, `UNCLEAR` between 6 % and 30 %, else `BACKGROUND`.
    """
    pixels, covers = _draw(scene, size)
    grid = size // PATCH
    owners = np.zeros(grid * grid, np.uint8)
    best = np.zeros(grid * grid, np.float32)
    for label, cover in covers:
        share = cover.reshape(grid, PATCH, grid, PATCH).mean((1, 3)).reshape(-1)
        seen = np.where(share >= 0.3, label, UNCLEAR).astype(np.uint8)
        owners = np.where((share > 0.06) & (share > best), seen, owners)
        best = np.maximum(best, share)
    if scene.sign is not None:
        _own_digits(scene.sign, owners, grid)
    return pixels, owners


def _own_digits(sign: Sign, owners: NDArray[np.uint8], grid: int) -> None:
    """Patches of the sign whose centre lies in a digit's cell belong to that digit."""
    centres = (np.arange(grid) + 0.5) / grid
    xs, ys = np.meshgrid(centres, centres)
    cell = 0.66 * sign.digit_height
    slot = np.floor((xs - sign.x) / cell + len(sign.digits) / 2).reshape(-1)
    inside = (
        (np.abs(ys - sign.y) <= sign.digit_height / 2).reshape(-1) & (slot >= 0) & (slot < len(sign.digits))
    )
    inside &= owners == SIGN
    owners[inside] = (SIGN + 1 + slot[inside]).astype(np.uint8)


def _draw(scene: Scene, size: int) -> tuple[NDArray[np.uint8], list[tuple[int, Floats]]]:
    canvas = _background(scene, size)
    covers: list[tuple[int, Floats]] = []
    if scene.sign is not None:
        covers.append((SIGN, _draw_sign(canvas, scene.sign, size)))
    for index, thing in enumerate(scene.objects):
        covers.append((index + 1, _draw_object(canvas, thing, size)))
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    gain = scene.light[0] + scene.light[1] * ramp[None, :] + scene.light[2] * ramp[:, None]
    canvas *= gain[..., None]
    grain = np.random.default_rng(scene.texture_seed + 1).standard_normal((size, size, 1), np.float32)
    canvas += scene.noise * grain
    return (np.clip(canvas, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8), covers


def _background(scene: Scene, size: int) -> Floats:
    """Blend of the two ground colours, float32 [size, size, 3]."""
    rng = np.random.default_rng(scene.texture_seed)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    xs, ys = axis[None, :], axis[:, None]
    angle = rng.uniform(0, np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    across = ys * np.cos(angle) - xs * np.sin(angle)
    frequency = rng.uniform(3.0, 11.0)
    if scene.texture == "plain":
        weight = np.broadcast_to(along - along.min(), (size, size))
    elif scene.texture == "stripes":
        weight = 0.5 + 0.5 * np.clip(3.0 * np.sin(2 * np.pi * frequency * along), -1, 1)
    elif scene.texture == "checker":
        product = np.sin(np.pi * frequency * along) * np.sin(np.pi * frequency * across)
        weight = 0.5 + 0.5 * np.clip(6.0 * product, -1, 1)
    elif scene.texture == "dots":
        product = np.cos(2 * np.pi * frequency * along) + np.cos(2 * np.pi * frequency * across)
        weight = np.clip(4.0 * (product - 1.1), 0, 1)
    else:
        coarse = rng.random((int(rng.integers(4, 9)), int(rng.integers(4, 9)))).astype(np.float32)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        weight = np.clip(np.asarray(image), 0, 1)
    first, second = (np.asarray(rgb, np.float32) for rgb in scene.ground_rgb)
    mix = weight.astype(np.float32)[..., None]
    return first * (1 - mix) + second * mix


def _draw_object(canvas: Floats, thing: Object, size: int) -> Floats:
    """Paint one shape in place; returns its cover float32 [size, size] in 0..1."""
    reach = thing.radius * EXTENT[thing.shape] * 1.45
    x0, x1 = _window(thing.x, reach, size)
    y0, y1 = _window(thing.y, reach, size)
    dx = ((np.arange(x0, x1, dtype=np.float32) + 0.5) / size - thing.x)[None, :]
    dy = ((np.arange(y0, y1, dtype=np.float32) + 0.5) / size - thing.y)[:, None]
    cos, sin = np.float32(np.cos(thing.angle)), np.float32(np.sin(thing.angle))
    u = (dx * cos + dy * sin).astype(np.float32)
    v = (dy * cos - dx * sin).astype(np.float32)
    distance = _signed_distance(thing.shape, u, v, thing.radius * EXTENT[thing.shape]) * size
    cover = np.clip(0.5 - distance, 0.0, 1.0)
    shade = 1.0 - 0.12 * (u + v) / thing.radius
    body = np.asarray(thing.rgb, np.float32) * shade[..., None]
    region = canvas[y0:y1, x0:x1]
    region += cover[..., None] * (body - region)
    whole = np.zeros((size, size), np.float32)
    whole[y0:y1, x0:x1] = cover
    return whole


def _window(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(0, int((centre - reach) * size) - 1), min(size, int((centre + reach) * size) + 2)


def _signed_distance(shape: str, u: Floats, v: Floats, reach: float) -> Floats:
    """Distance to the outline, negative inside; `reach` is the shape's own size."""
    if shape == "circle":
        return np.hypot(u, v) - np.float32(reach)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(reach)
    if shape == "cross":
        wide, slim = np.float32(reach), np.float32(reach * 0.36)
        au, av = np.abs(u), np.abs(v)
        return np.minimum(np.maximum(au - wide, av - slim), np.maximum(au - slim, av - wide))
    if shape == "triangle":
        half = np.float32(reach / 2)
        slope: Floats = np.maximum(v, np.float32(0.8660254) * np.abs(u) - np.float32(0.5) * v)
        return slope - half
    # Star: fold the plane into one of ten sectors, then one straight edge is left.
    turn = np.float32(2 * np.pi / 5)
    theta = np.arctan2(u, -v)
    folded = np.abs(theta - turn * np.round(theta / turn))
    radius = np.hypot(u, v)
    px, py = radius * np.cos(folded), radius * np.sin(folded)
    inner = reach * 0.45
    ex, ey = inner * np.cos(np.pi / 5) - reach, inner * np.sin(np.pi / 5)
    length = np.hypot(ex, ey)
    edge: Floats = ((px - reach) * np.float32(ey / length) - py * np.float32(ex / length)).astype(np.float32)
    return edge


def _draw_sign(canvas: Floats, sign: Sign, size: int) -> Floats:
    """Paint the plate and its digits in place; returns the plate's cover float32 [size, size]."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    beside = np.abs(axis[None, :] - sign.x) - sign.half_width
    above = np.abs(axis[:, None] - sign.y) - sign.half_height
    cover = np.clip(0.5 - np.maximum(beside, above) * size, 0.0, 1.0).astype(np.float32)
    canvas += cover[..., None] * (np.asarray(sign.plate_rgb, np.float32) - canvas)
    cell = 0.66 * sign.digit_height
    left = sign.x - cell * len(sign.digits) / 2
    ink = np.zeros((size, size), np.float32)
    for slot, digit in enumerate(sign.digits):
        corner = left + slot * cell + 0.06 * cell, sign.y - sign.digit_height / 2
        _stamp(ink, _glyph(digit), corner, (0.88 * cell, sign.digit_height))
    canvas += ink[..., None] * (np.asarray(sign.ink_rgb, np.float32) - canvas)
    return cover


def _stamp(ink: Floats, glyph: Image.Image, corner: tuple[float, float], extent: tuple[float, float]) -> None:
    """Scale a glyph into the box (unit coordinates) of `ink`, with sub-pixel placement."""
    size, (x, y), (width, height) = ink.shape[0], corner, extent
    x0, y0 = int(x * size), int(y * size)
    x1, y1 = min(size, int(np.ceil((x + width) * size))), min(size, int(np.ceil((y + height) * size)))
    scale_x, scale_y = glyph.width / (width * size), glyph.height / (height * size)
    box = (
        (x0 - x * size) * scale_x,
        (y0 - y * size) * scale_y,
        (x1 - x * size) * scale_x,
        (y1 - y * size) * scale_y,
    )
    pad = 40  # the glyph has this margin on every side, so a box may reach outside it
    padded = _padded(glyph, pad)
    shifted = tuple(edge + pad for edge in box)
    patch = padded.resize((x1 - x0, y1 - y0), Image.Resampling.BOX, box=shifted)
    region = ink[y0:y1, x0:x1]
    np.maximum(region, np.asarray(patch, np.float32) / 255.0, out=region)


def _padded(glyph: Image.Image, pad: int) -> Image.Image:
    whole = Image.new("L", (glyph.width + 2 * pad, glyph.height + 2 * pad))
    whole.paste(glyph, (pad, pad))
    return whole


@lru_cache(maxsize=10)
def _glyph(digit: str) -> Image.Image:
    """One digit, tightly cropped, about 96 pixels high."""
    font = ImageFont.load_default(size=130)
    image = Image.new("L", (200, 260))
    ImageDraw.Draw(image).text((40, 40), digit, fill=255, font=font, stroke_width=4, stroke_fill=255)
    return image.crop(image.getbbox())
