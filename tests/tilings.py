"""Tilings that checkpoints have, small ones that reach what those do not, and shapes of images for both."""

from __future__ import annotations

from typing import Any

from divprune_edge.manifest import Preprocessing, Tiling

MEAN = (0.48145466, 0.4578275, 0.40821073)

NEXT = Tiling(
    grids=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)), tile=336, side=24, several="tiles"
)
ONEVISION = Tiling(
    grids=tuple((384 * down, 384 * across) for down in range(1, 7) for across in range(1, 7)),
    tile=384,
    side=27,
    max_tiles=9,
    several="base",
)
SMALL = Tiling(grids=((28, 56), (56, 28), (56, 56), (84, 28), (28, 84)), tile=28, side=4, several="tiles")
ODD = Tiling(
    grids=tuple((30 * down, 30 * across) for down in range(1, 5) for across in range(1, 5)),
    tile=30,
    side=5,
    max_tiles=2,
    several="base",
)
ONE = Tiling(grids=((60, 60),), tile=30, side=7, max_tiles=3, several="base")
UNORDERED = Tiling(
    grids=((84, 56), (28, 168), (56, 84), (28, 28), (84, 56), (112, 28)), tile=28, side=3, several="tiles"
)
TILINGS = {
    "next": NEXT,
    "onevision": ONEVISION,
    "small": SMALL,
    "odd": ODD,
    "one": ONE,
    "unordered": UNORDERED,
}

SHAPES = [
    *((1, 1), (1, 2), (1, 300), (5000, 1), (2, 640), (640, 3), (5, 7), (30, 30), (29, 84), (50, 50)),
    *((336, 336), (336, 672), (1008, 336), (672, 672), (384, 384), (768, 1152), (2304, 2304), (337, 671)),
    *((333, 777), (480, 640), (640, 480), (427, 640), (224, 1024), (1080, 1920), (1501, 999), (1999, 2000)),
]
"""(height, width): no larger than a few pixels, as large as a grid, tall, wide, odd, and like photos."""

TINY_SHAPES = [
    *((35, 70), (70, 35), (70, 70), (105, 35), (35, 105), (35, 35), (105, 105), (140, 70)),
    *((1, 1), (1, 2), (1, 40), (90, 1), (2, 300), (200, 3), (5, 7), (29, 84)),
    *((30, 47), (34, 36), (77, 131), (131, 77), (111, 50), (61, 203), (240, 320), (99, 100)),
]
"""As above for tiles of about 35 pixels."""


def processing(tiling: Tiling, **changes: Any) -> Preprocessing:
    """How images become tiles that are left as they are cut."""
    edge = {"shortest_edge": tiling.tile, "crop_height": tiling.tile, "crop_width": tiling.tile}
    facts: dict[str, Any] = {"resize": "shortest_edge", **edge, "resample": 3, "rescale_factor": 1 / 255}
    return Preprocessing(**(facts | {"mean": MEAN, "std": (0.27, 0.26, 0.28), "tiling": tiling} | changes))
