"""An image to the visual tokens that the language model reads: preprocess, encode, select; nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import SelectorInfo
from divprune_edge.models.families import family_named
from divprune_edge.processing.images import load_image
from divprune_edge.runtime.backends import Backend, DeviceTensor, Encoded
from divprune_edge.runtime.bundle import Bundle

if TYPE_CHECKING:
    from divprune_edge.processing.images import ImageSource

Pixels = npt.NDArray[np.uint8]
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class VisualTokens:
    """What the encoder and a selector give the rest.

    Attributes:
        tokens: [images, K, D], where the graphs run.
        kept_indices: int64 [images, K]; which rows of the encoder's output these are, see
            :meth:`~divprune_edge.runtime.backends.backend.Backend.select`.
        encoded: the encoder's own output, all rows and the signals that were asked for.
    """

    tokens: DeviceTensor
    kept_indices: npt.NDArray[np.int64]
    encoded: Encoded


class Vision:
    """The vision encoder and the selectors of a bundle on a backend."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._manifest, self._backend = bundle.manifest, backend
        self._family = family_named(bundle.manifest.family)

    def pixels(self, image: ImageSource, *, bgr: bool = False) -> Pixels:
        """Return an image as the encoder takes it, uint8 [1, H, W, 3].

        Raises:
            UserError: the image cannot be used.
        """
        return self._family.pixels(load_image(image, bgr), *self._manifest.encoder_input)

    def see(
        self, pixels: Pixels, selector: SelectorInfo | None, on_stage: OnStage = lambda stage: None
    ) -> VisualTokens:
        """Encode images [n, H, W, 3] and keep what ``selector`` picks; None keeps all.

        ``on_stage`` is told when the stages ``vision`` and ``select`` end.
        """
        encoded = self.encode(pixels, [selector])
        on_stage("vision")
        seen = self.select(encoded, selector, len(pixels))
        on_stage("select")
        return seen

    def encode(self, pixels: Pixels, selectors: Iterable[SelectorInfo | None]) -> Encoded:
        """Run the encoder, with the signals that any of these selectors needs."""
        signals = {signal for selector in selectors if selector is not None for signal in selector.signals}
        return self._backend.encode(pixels, sorted(signals))

    def select(self, encoded: Encoded, selector: SelectorInfo | None, images: int = 1) -> VisualTokens:
        """Keep what ``selector`` picks of encoded images."""
        tokens, kept = self._backend.select(encoded, selector, self.valid(images))
        return VisualTokens(tokens, kept, encoded)

    def valid(self, images: int = 1) -> npt.NDArray[np.bool_]:
        """Return which rows count, bool [images, N]: all, as no family here pads its rows."""
        return np.ones((images, self._manifest.vision_encoder.tokens), np.bool_)
