"""An image as a vision encoder takes it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class ImageInput:
    """What a family's preprocessing makes of an image.

    Attributes:
        pixels: uint8 [tiles, H, W, 3].
    """

    pixels: npt.NDArray[np.uint8]
