"""Where kept tokens lie: the part of an image that an encoder saw, in fractions of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune_edge.manifest import Preprocessing, Tiling
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.preprocess import to_pixels
from divprune_edge.runtime.serve.places import shown
from divprune_edge.runtime.vision import SeenImage

SIDE = 48
FACTS: dict[str, Any] = {"resample": 0, "rescale_factor": 1, "mean": (0.5,) * 3, "std": (0.5,) * 3}
CROP = {"resize": "shortest_edge", "shortest_edge": SIDE, "crop_height": SIDE, "crop_width": SIDE}
EXACT = {"resize": "exact", "resize_height": SIDE, "resize_width": SIDE}


def seen(*kept: int) -> SeenImage:
    return SeenImage(rows=np.arange(len(kept)), kept_indices=np.array(kept, np.int64))


def place_of(facts: Preprocessing, width: int, height: int, spot: tuple[float, float]) -> tuple[int, int]:
    """Return the row and column, of 6, where the encoder sees a white spot that is at ``spot`` of an image."""
    pixels = np.zeros((height, width, 3), np.uint8)
    y, x = (int(share * edge) for share, edge in zip(spot, (height, width), strict=True))
    reach = max(height, width) // 30
    pixels[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach] = 255
    found = to_pixels(Image.fromarray(pixels), facts)[0, :, :, 0]
    cells = (found > 160).reshape(6, SIDE // 6, 6, SIDE // 6).sum(axis=(1, 3))  # what was padded is grey
    row, column = np.unravel_index(int(cells.argmax()), cells.shape)
    return int(row), int(column)


@pytest.mark.parametrize("size", [(120, 120), (240, 120), (90, 200), (301, 77)])
@pytest.mark.parametrize(
    "facts", [CROP, EXACT, {**CROP, "pad_to_square": True}, {**EXACT, "pad_to_square": True}]
)
def test_the_view_is_what_the_encoder_saw(size: tuple[int, int], facts: dict[str, Any]) -> None:
    """A spot in the middle of each cell of the grid, as the view places it, is seen in that cell."""
    width, height = size
    known = Preprocessing(**FACTS, **facts)
    found = shown(ImageInput(np.empty(0, np.uint8), (height, width)), seen(0), 36, known)
    assert found.grid == (6, 6)
    top, left, bottom, right = found.view
    inside = 0
    for row in range(6):
        for column in range(6):
            spot = top + (row + 0.5) / 6 * (bottom - top), left + (column + 0.5) / 6 * (right - left)
            if all(0.05 < share < 0.95 for share in spot):
                assert place_of(known, width, height, spot) == (row, column)
                inside += 1
    assert inside >= 4


def test_a_class_token_comes_before_the_grid() -> None:
    found = shown(
        ImageInput(np.empty(0, np.uint8), (10, 10)), seen(0, 3), 37, Preprocessing(**FACTS, **EXACT)
    )
    assert (found.first, found.grid, found.candidates) == (1, (6, 6), 37)
    none = shown(ImageInput(np.empty(0, np.uint8), (10, 10)), seen(0), 35, Preprocessing(**FACTS, **EXACT))
    assert none.grid is None


def test_tiles_have_boxes_of_their_own() -> None:
    from divprune_edge.processing.assembly import assembly

    tiling = Tiling(grids=((96, 96), (48, 96)), tile=48, side=6, several="tiles")
    made = assembly(100, 200, tiling)
    image = ImageInput(np.empty(0, np.uint8), (100, 200), made)
    kept = seen(0, 35, len(made.rows) - 2, len(made.rows) - 1)
    found = shown(image, kept, 0, Preprocessing(**FACTS, **EXACT))
    assert found.grid is None and found.candidates == len(made.rows)
    assert found.boxes is not None and len(found.boxes) == 4
    first, last = found.boxes[0], found.boxes[1]
    assert first[:2] == (0, 0) and last[2:] == (1, 1)
    assert found.boxes[3] == (0, 0, 0, 0)  # a line's end
    said = found.fields()
    assert said["boxes"] == found.boxes and "frames" not in said
