"""Images of noise: the same for the same size and seed."""

from __future__ import annotations

import numpy as np
from PIL import Image


def noise_pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_image(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise_pixels(height, width, seed))
