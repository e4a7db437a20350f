"""What a procedural picture contains: a few coloured shapes, sometimes a sign with a number.

A scene is pure description in unit coordinates (0..1, x to the right, y down), so that the same
scene can be drawn at any size and every answer can be checked against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "stripes", "checker", "clouds", "dots")

MIN_RADIUS, MAX_RADIUS = 0.075, 0.16
MIN_OBJECTS, MAX_OBJECTS = 2, 5
GAP = 0.03
"""Free space between two objects, as a fraction of the picture's side."""

# Extent of each shape relative to its nominal radius (the drawing uses the same numbers), and the
# area it covers in units of radius squared.
EXTENT = {"circle": 1.0, "square": 0.88, "triangle": 1.2, "star": 1.25, "cross": 1.05}
AREA = {"circle": 3.14, "square": 3.10, "triangle": 1.87, "star": 2.18, "cross": 2.30}


class Split(Enum):
    """Disjoint families of random streams: a held-out scene can never be a training scene."""

    TRAIN = 1
    HELD_OUT = 2
    DEMO = 3


@dataclass(frozen=True)
class Object:
    """One shape: centre and nominal radius in unit coordinates, angle in radians, RGB in 0..1."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[float, float, float]

    @property
    def area(self) -> float:
        """Covered area in unit coordinates squared."""
        return AREA[self.shape] * self.radius**2


@dataclass(frozen=True)
class Sign:
    """A plate with a number: centre, half sizes, digit height (unit coordinates), grounds in RGB."""

    digits: str
    x: float
    y: float
    half_width: float
    half_height: float
    digit_height: float
    plate_rgb: tuple[float, float, float]
    ink_rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """A picture's description; `texture_seed` fixes the background's random detail."""

    objects: tuple[Object, ...]
    sign: Sign | None
    texture: str
    ground_rgb: tuple[tuple[float, float, float], tuple[float, float, float]]
    light: tuple[float, float, float]
    """Gain in the middle, and its change across the picture along x and along y."""
    noise: float
    texture_seed: int


def scene_rng(split: Split, seed: int, index: int) -> np.random.Generator:
    """The random stream of scene `index` of a split: independent of how many scenes are drawn."""
    return np.random.default_rng((split.value, seed, index))


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: 2 to 5 shapes without overlap, and a sign in six scenes of ten."""
    sign = _sample_sign(rng) if rng.random() < 0.6 else None
    objects = None
    while objects is None:
        objects = _sample_objects(rng, sign)
    base = rng.uniform(0.14, 0.52)
    return Scene(
        objects=objects,
        sign=sign,
        texture=TEXTURES[rng.integers(len(TEXTURES))],
        ground_rgb=(
            _muted(rng, base),
            _muted(rng, float(np.clip(base + rng.uniform(-0.14, 0.14), 0.08, 0.56))),
        ),
        light=(rng.uniform(0.82, 1.12), rng.uniform(-0.18, 0.18), rng.uniform(-0.18, 0.18)),
        noise=rng.uniform(0.0, 0.035),
        texture_seed=int(rng.integers(2**31)),
    )


def _sample_objects(rng: np.random.Generator, sign: Sign | None) -> tuple[Object, ...] | None:
    """Colours and shapes come from a small palette per scene, so that duplicates are common."""
    count = int(rng.choice([2, 3, 4, 5], p=[0.2, 0.25, 0.25, 0.3]))
    colors = rng.choice(COLORS, size=int(rng.integers(1, count + 1, size=2).max()), replace=False)
    shapes = rng.choice(SHAPES, size=int(rng.integers(1, count + 1, size=2).max()), replace=False)
    radii = MIN_RADIUS * (MAX_RADIUS / MIN_RADIUS) ** rng.random(count)
    placed: list[Object] = []
    for radius in radii:
        color, shape = str(rng.choice(colors)), str(rng.choice(shapes))
        reach = reach_of(shape, radius)
        for _ in range(40):
            x, y = rng.uniform(reach + 0.01, 0.99 - reach, size=2)
            if is_free(x, y, reach, placed, sign):
                break
        else:
            return None
        angle = float(rng.uniform(-0.26, 0.26))
        placed.append(Object(shape, color, float(x), float(y), float(radius), angle, _paint(rng, color)))
    return tuple(placed)


def reach_of(shape: str, radius: float) -> float:
    """How far a shape extends from its centre, turned as it may be."""
    return radius * EXTENT[shape] * (1.3 if shape == "square" else 1.0)


def is_free(x: float, y: float, reach: float, placed: Sequence[Object], sign: Sign | None) -> bool:
    """Whether a shape with this centre and reach is apart from all others and the sign."""
    for other in placed:
        if np.hypot(x - other.x, y - other.y) < reach + reach_of(other.shape, other.radius) + GAP:
            return False
    if sign is None:
        return True
    dx = max(abs(x - sign.x) - sign.half_width, 0.0)
    dy = max(abs(y - sign.y) - sign.half_height, 0.0)
    return float(np.hypot(dx, dy)) > reach + GAP


def _sample_sign(rng: np.random.Generator) -> Sign:
    """Two or three digits; dark on light, light on dark, from faint to strong, grey or tinted."""
    digits = "".join(str(d) for d in rng.integers(0, 10, size=int(rng.integers(2, 4))))
    height = float(rng.uniform(0.125, 0.16))
    half_height = height / 2 + float(rng.uniform(0.015, 0.035))
    half_width = 0.66 * height * len(digits) / 2 + float(rng.uniform(0.015, 0.04))
    contrast = float(rng.uniform(0.3, 0.8))
    low = float(rng.uniform(0.02, 0.95 - contrast))
    dark, bright = _muted(rng, low), _muted(rng, low + contrast)
    plate, ink = (bright, dark) if rng.random() < 0.5 else (dark, bright)
    x = float(rng.uniform(half_width + 0.01, 0.99 - half_width))
    y = float(rng.uniform(half_height + 0.01, 0.99 - half_height))
    return Sign(digits, x, y, half_width, half_height, height, plate, ink)


def _muted(rng: np.random.Generator, value: float) -> tuple[float, float, float]:
    """A greyish tint of the given brightness."""
    return _hsv(float(rng.random()), float(rng.uniform(0.0, 0.28)), value)


def _paint(rng: np.random.Generator, color: str) -> tuple[float, float, float]:
    """A shade of a named colour: hue, saturation and brightness vary inside what the name covers."""
    if color == "white":
        return _hsv(float(rng.random()), float(rng.uniform(0.0, 0.06)), float(rng.uniform(0.88, 1.0)))
    hue, spread = {
        "red": (0, 8),
        "yellow": (54, 6),
        "green": (125, 18),
        "blue": (222, 12),
        "purple": (282, 10),
    }[color]
    degrees = hue + float(rng.uniform(-spread, spread))
    bright = (0.62, 0.95) if color == "green" else (0.78, 1.0)
    return _hsv((degrees % 360) / 360, float(rng.uniform(0.72, 1.0)), float(rng.uniform(*bright)))


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """HSV in 0..1 to RGB in 0..1."""
    sector = hue * 6.0

    def channel(n: int) -> float:
        k = (n + sector) % 6.0
        return value - value * saturation * max(0.0, min(k, 4.0 - k, 1.0))

    return channel(5), channel(3), channel(1)
