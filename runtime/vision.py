"""Images to the visual tokens that the language model reads: preprocess, encode, select; nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import SelectorInfo
from divprune_edge.models.families import family_named
from divprune_edge.processing.image_input import ImageInput
from divprune_edge.processing.images import load_image
from divprune_edge.runtime.backends import Backend, DeviceTensor, Encoded
from divprune_edge.runtime.bundle import Bundle

if TYPE_CHECKING:
    from divprune_edge.processing.images import ImageSource

Indices = npt.NDArray[np.int64]
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Candidates:
    """What selectors pick from.

    Attributes:
        encoded: visual tokens [images, N, D] and the signals that were asked for.
        valid: bool [images, N]; which rows count. They come first.
    """

    encoded: Encoded
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SeenImage:
    """What was kept of an image, in reading order.

    Attributes:
        rows: int64 [k]; rows of the visual tokens.
        kept_indices: int64 [k]; which of the image's candidates they are, see
            :meth:`~divprune_edge.runtime.backends.backend.Backend.select`.
    """

    rows: Indices
    kept_indices: Indices


@dataclass(frozen=True)
class VisualTokens:
    """What the encoder and a selector give the rest.

    Attributes:
        tokens: [1, rows, D], where the graphs run; those of several images one after the other.
        length: how many rows these are.
        images: what is whose.
    """

    tokens: DeviceTensor
    length: int
    images: tuple[SeenImage, ...]

    @property
    def rows(self) -> Indices:
        """The row of each visual token of a prompt, int64 [k of all images]."""
        return np.concatenate([np.empty(0, np.int64), *(image.rows for image in self.images)])

    @property
    def kept_indices(self) -> Indices:
        """Those of all images, one after the other."""
        return np.concatenate([np.empty(0, np.int64), *(image.kept_indices for image in self.images)])


class Vision:
    """The vision encoder and the selectors of a bundle on a backend."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._manifest, self._backend = bundle.manifest, backend
        self._family = family_named(bundle.manifest.family)

    def read(self, images: Sequence[ImageSource], *, bgr: bool = False) -> list[ImageInput]:
        """Return the images of one prompt as the encoder takes them.

        Raises:
            UserError: one cannot be used.
        """
        facts, alone = self._manifest.encoder_input, len(images) == 1
        return [self._family.read(load_image(image, bgr), *facts, alone) for image in images]

    def count(self, image: ImageInput, selector: SelectorInfo | None) -> int:
        """Return how many visual tokens the language model will see of an image."""
        valid = self._valid([image]).sum(axis=1)
        return int(np.minimum(valid, self._keep(selector)).sum())

    def see(
        self,
        images: Sequence[ImageInput],
        selector: SelectorInfo | None,
        on_stage: OnStage = lambda stage: None,
    ) -> VisualTokens:
        """Encode images and keep what ``selector`` picks of each; None keeps all.

        ``on_stage`` is told when the stages ``vision`` and ``select`` end.
        """
        seen = []
        for begin in range(0, len(images), self._backend.images_at_once):
            candidates = self.encode(images[begin : begin + self._backend.images_at_once], [selector])
            on_stage("vision")
            seen.append(self.select(candidates, selector))
            on_stage("select")
        return self.join(seen)

    def encode(self, images: Sequence[ImageInput], selectors: Iterable[SelectorInfo | None]) -> Candidates:
        """Run the encoder, with the signals that any of these selectors needs."""
        signals = {signal for selector in selectors if selector is not None for signal in selector.signals}
        encoded = self._backend.encode(np.concatenate([image.pixels for image in images]), sorted(signals))
        return Candidates(encoded, self._valid(images))

    def select(self, candidates: Candidates, selector: SelectorInfo | None) -> VisualTokens:
        """Keep what ``selector`` picks of each image; all of one that has no more rows than that."""
        batch, keep = len(candidates.valid), self._keep(selector)
        tokens, kept = self._backend.select(candidates.encoded, selector, candidates.valid)
        counts = np.minimum(candidates.valid.sum(axis=1), keep)
        images = tuple(
            SeenImage(i * keep + np.arange(count), kept[i, :count]) for i, count in enumerate(counts)
        )
        return VisualTokens(self._table([tokens], batch * keep), batch * keep, images)

    def join(self, seen: Sequence[VisualTokens]) -> VisualTokens:
        """Return the visual tokens of several runs as one table; of none, a row of zeros, as no table is empty."""
        if len(seen) == 1:
            return seen[0]
        if not seen:
            nothing = np.zeros((1, 1, self._manifest.vision_encoder.width), self._manifest.token_dtype)
            return VisualTokens(self._backend.to_device(nothing), 1, ())
        images: list[SeenImage] = []
        total = 0
        for part in seen:
            images += [replace(image, rows=total + image.rows) for image in part.images]
            total += part.length
        return VisualTokens(self._table([part.tokens for part in seen], total), total, tuple(images))

    def _keep(self, selector: SelectorInfo | None) -> int:
        return selector.keep if selector is not None else self._manifest.candidates

    def _table(self, tokens: Sequence[DeviceTensor], rows: int) -> DeviceTensor:
        return self._backend.join(tokens, (1, rows, self._manifest.vision_encoder.width))

    def _valid(self, images: Sequence[ImageInput]) -> npt.NDArray[np.bool_]:
        """Return which rows count, bool [images, N]: all, as no family here pads its rows."""
        return np.ones((len(images), self._manifest.candidates), np.bool_)
