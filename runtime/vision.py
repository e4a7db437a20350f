"""Images and clips to the visual tokens that the language model reads: preprocess, encode, select; nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import VISUAL_TOKENS, Manifest, SelectorInfo
from divprune_edge.models.families import reader_of
from divprune_edge.models.signals import ORIGINS
from divprune_edge.processing.image_input import (
    Groups,
    ImageInput,
    kept_places,
    reading_order,
)
from divprune_edge.processing.images import load_image
from divprune_edge.processing.layout import PlacedImage
from divprune_edge.processing.patches import ROWS
from divprune_edge.processing.sources import Video
from divprune_edge.runtime.backends import Backend, DeviceTensor, Encoded
from divprune_edge.runtime.budgets import Budgets, coverage_radius
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.progress import OnProgress, in_silence

if TYPE_CHECKING:
    from divprune_edge.processing.sources import Media

Indices = npt.NDArray[np.int64]
OnStage = Callable[[str], None]
Pruning = SelectorInfo | Budgets | None
"""What keeps visual tokens: a selector, that at the budget which covers an image, or None, which keeps all."""


@dataclass(frozen=True)
class Candidates:
    """What selectors pick from: one group of rows for each image, or one for each of its tiles.

    Attributes:
        encoded: visual tokens [groups, N, D] and the signals that were asked for.
        valid: bool [groups, N]; which rows count. They come first.
        reading: int64 [groups, N]; at which place of its image a row is read.
        groups: which groups are whose.
        images: as the encoder took them.
        origins: int64 [groups, N]; which of the whole image's visual tokens a row is, where most patches leave inside
            the encoder; None: the same one.
    """

    encoded: Encoded
    valid: npt.NDArray[np.bool_]
    reading: Indices
    groups: tuple[range, ...]
    images: Sequence[ImageInput]
    origins: Indices | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class SeenImage(PlacedImage):
    """What was kept of an image, in reading order.

    Attributes:
        kept_indices: int64 [k]; which of the image's candidates they are, see
            :meth:`~divprune_edge.runtime.backends.backend.Backend.select`.
        of_whole: int64 [k]; which of the visual tokens of the whole image they are, -1 for none of them; None: as the
            candidates count.
    """

    kept_indices: Indices
    of_whole: Indices | None = None

    @property
    def origins(self) -> Indices:
        """Which of the visual tokens of the whole image they are, whatever left inside the encoder."""
        return self.kept_indices if self.of_whole is None else self.of_whole


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

    @property
    def origins(self) -> Indices:
        """Likewise."""
        return np.concatenate([np.empty(0, np.int64), *(image.origins for image in self.images)])


def groups_of(manifest: Manifest, image: ImageInput) -> Groups:
    """Return the rows of an image in the groups that selectors pick from."""
    info = manifest.assemble
    if info is None:
        return image.groups(manifest.candidates)
    return image.groups(info.rows, info.sources, info.per)


def read_clip(manifest: Manifest, video: Video) -> ImageInput:
    """Return a clip as the encoder takes it.

    Raises:
        UserError: it cannot be used, or the bundle takes none.
    """
    (facts, size), reader = manifest.encoder_input, reader_of(manifest.family)
    if reader.clip is None:
        raise UserError(
            f"Models of the family '{manifest.family}' take no clips: ask about images, or use a bundle of "
            "LLaVA-OneVision or Qwen-VL.",
            code="clips-unsupported",
        )
    if facts.clips is None:
        raise UserError(
            "The bundle takes no clips: export it with --frames N, the most frames of a clip to look at.",
            code="bundle-without-clips",
        )
    return reader.clip(video, facts, size)


class Vision:
    """The vision encoder and the selectors of a bundle on a backend; ``tell`` hears of reading clips, and encoding."""

    def __init__(self, bundle: Bundle, backend: Backend, tell: OnProgress = in_silence) -> None:
        self._manifest, self._backend, self._tell = bundle.manifest, backend, tell
        self._reader = reader_of(bundle.manifest.family)

    def read(
        self, images: Sequence[Media], *, bgr: bool = False, before: Sequence[ImageInput | None] = ()
    ) -> list[ImageInput]:
        """Return the images and clips of one prompt as the encoder takes them.

        ``before`` are the first of them where they were read before, or None. An image that is then no longer the only
        one is read again.

        Raises:
            UserError: one cannot be used.
        """
        alone = sum(not isinstance(image, Video) for image in images) == 1
        found = []
        for i, image in enumerate(images):
            known = before[i] if i < len(before) else None
            if known is not None and (isinstance(image, Video) or known.alone == alone):
                found.append(known)
            else:
                found.append(self.read_one(image, alone=alone, bgr=bgr))
        return found

    def read_one(self, image: Media, *, alone: bool, bgr: bool = False) -> ImageInput:
        """Return an image, which may be the only one of its prompt, or a clip as the encoder takes it.

        Raises:
            UserError: it cannot be used.
        """
        if isinstance(image, Video):
            return self._read_clip(image)
        return self._reader.image(load_image(image, bgr), *self._manifest.encoder_input, alone)

    def _read_clip(self, video: Video) -> ImageInput:
        work = f"reading {video.name[0].lower()}{video.name[1:]}"
        self._tell(work, 0, None)

        def on_frame(done: int, total: int) -> None:
            self._tell(work, done, total)
            if video.on_frame is not None:
                video.on_frame(done, total)

        try:
            return read_clip(self._manifest, replace(video, on_frame=on_frame))
        except UserError:
            self._tell(work, 1, 1)  # over, too: in a batch the next question follows
            raise

    def count(self, image: ImageInput, selector: Pruning) -> int:
        """Return how many visual tokens the language model will see of an image, at most."""
        return int(np.minimum(groups_of(self._manifest, image).valid.sum(axis=1), self._keep(selector)).sum())

    def spans(self, image: ImageInput, selector: Pruning) -> tuple[int, ...]:
        """Return the same for each span of a clip; before a selector has picked, only their sum is right."""
        return image.spans(np.arange(self.count(image, selector)))

    def see(
        self,
        images: Sequence[ImageInput],
        selector: Pruning,
        on_stage: OnStage = lambda stage: None,
    ) -> VisualTokens:
        """Encode images and keep what ``selector`` picks of each; None keeps all.

        ``on_stage`` is told when the stages ``vision`` and ``select`` end.
        """
        seen = []
        alone = self._manifest.assemble is not None or isinstance(selector, Budgets)
        at_once = 1 if alone else self._backend.images_at_once
        for begin in self._steps("encoding images", len(images), at_once):
            candidates = self.encode(images[begin : begin + at_once], [selector])
            on_stage("vision")
            seen.append(self.select(candidates, selector))
            on_stage("select")
        return self.join(seen)

    def encode(self, images: Sequence[ImageInput], selectors: Iterable[Pruning]) -> Candidates:
        """Run the encoder, with the signals that any of these selectors needs; one image where it has tiles."""
        if self._manifest.assemble is not None:
            (image,) = images
            return self.assemble(image, self.tiles(image))
        wanted = {signal for selector in selectors if selector is not None for signal in selector.signals}
        if self._manifest.vision_encoder.uncut is not None:
            wanted.add(ORIGINS)
        pixels = np.concatenate([image.pixels for image in images])
        encoded = self._backend.encode({"pixels": pixels}, sorted(wanted))
        return self._candidates(encoded, images, [groups_of(self._manifest, image) for image in images])

    def assemble(self, image: ImageInput, tiles: Encoded) -> Candidates:
        """Make the rows of an image of what the encoder made of its :meth:`tiles`; the bundle has a graph for that."""
        groups = groups_of(self._manifest, image)
        return self._candidates(self._backend.assemble(tiles, groups), [image], [groups])

    def _candidates(
        self, encoded: Encoded, images: Sequence[ImageInput], groups: Sequence[Groups]
    ) -> Candidates:
        ends = np.cumsum([len(group.valid) for group in groups])
        return Candidates(
            encoded,
            np.concatenate([group.valid for group in groups]),
            np.concatenate([group.reading for group in groups]),
            tuple(range(end - len(group.valid), end) for end, group in zip(ends, groups, strict=True)),
            images,
            self._backend.to_host(encoded.outputs[ORIGINS]) if ORIGINS in encoded.outputs else None,
        )

    def select(self, candidates: Candidates, selector: Pruning) -> VisualTokens:
        """Keep what ``selector`` picks of each group of rows; all of one that has no more rows than that."""
        counts = candidates.valid.sum(axis=1)
        if isinstance(selector, Budgets):
            selector, tokens, kept = self._fitting(candidates, selector, counts)
        else:
            tokens, kept = self._select(candidates, selector, counts)
        keep = self._keep(selector)
        images = []
        for groups, image in zip(candidates.groups, candidates.images, strict=True):
            few = [min(keep, int(counts[i])) for i in groups]
            rows = np.concatenate([i * keep + np.arange(n) for i, n in zip(groups, few, strict=True)])
            indices = np.concatenate([kept[i, :n] for i, n in zip(groups, few, strict=True)])
            if len(groups) > 1:
                order, indices = reading_order(np.repeat(np.array(groups), few), indices, candidates.reading)
                rows = rows[order]
            origins = None if candidates.origins is None else candidates.origins[groups[0]]
            images.append(self.placed(image, rows, indices, origins))
        length = len(counts) * keep
        return VisualTokens(self._table([tokens], length), length, tuple(images))

    def fitting(self, candidates: Candidates, budgets: Budgets) -> SelectorInfo:
        """Return the selector of the smallest budget that covers one image, the largest where none does."""
        return self._fitting(candidates, budgets, candidates.valid.sum(axis=1))[0]

    def _fitting(
        self, candidates: Candidates, budgets: Budgets, counts: Indices
    ) -> tuple[SelectorInfo, DeviceTensor, Indices]:
        looked_at = self._manifest.vision_encoder.looked_at
        rows = self._backend.to_host(candidates.encoded.tokens)[..., :looked_at]
        for selector in budgets.selectors:
            tokens, kept = self._select(candidates, selector, counts)
            pruned = np.flatnonzero(counts > selector.keep)
            radii = (coverage_radius(rows[i, : counts[i]], kept[i]) for i in pruned)
            if selector is budgets.largest or max(radii, default=0.0) <= budgets.radius:
                break
        return selector, tokens, kept

    def placed(
        self, image: ImageInput, rows: Indices, kept: Indices, origins: Indices | None = None
    ) -> SeenImage:
        """Return what was kept, at the positions that it had where the bundle keeps these."""
        whole = None if origins is None else np.where(kept < 0, kept, origins[kept])
        seen = SeenImage(rows=rows, kept_indices=kept, of_whole=whole, spans=image.spans(kept))
        if self._manifest.numbering == "compact":
            return seen
        places, ahead = kept_places(image, kept, self._rows(image))
        return replace(seen, places=places, ahead=ahead)

    def _rows(self, image: ImageInput) -> int:
        return int(groups_of(self._manifest, image).valid.sum())

    def _select(
        self, candidates: Candidates, selector: SelectorInfo | None, counts: Indices
    ) -> tuple[DeviceTensor, Indices]:
        """Return what is kept, [groups, K, D], and its indices; a group with too few rows keeps its first K."""
        backend, encoded, valid = self._backend, candidates.encoded, candidates.valid
        if selector is None:
            return encoded.tokens, np.tile(np.arange(valid.shape[1]), (len(valid), 1))
        if counts.min() > selector.keep and (len(counts) == 1 or backend.images_at_once > 1):
            return backend.select(encoded, selector, valid)
        tokens, kept = [], []
        for i, count in enumerate(counts):
            one = backend.part(encoded, i)
            if count > selector.keep:
                found, indices = backend.select(one, selector, valid[i : i + 1])
            else:
                first = np.arange(selector.keep)
                found, indices = backend.take(one.tokens, first), first[None]
            tokens.append(found)
            kept.append(indices)
        shape = (len(counts), selector.keep, self._manifest.vision_encoder.width)
        return backend.join(tokens, shape), np.concatenate(kept)

    def tiles(self, image: ImageInput) -> Encoded:
        """Run the encoder on the tiles of one image, a few at a time, with all its signals."""
        outputs = self._manifest.vision_encoder.outputs
        pixels, at_once = image.pixels, self._manifest.tiles_at_once
        signals = sorted({tensor.name for tensor in outputs} - {VISUAL_TOKENS})
        runs = (
            self._backend.encode({**image.inputs, "pixels": pixels[i : i + at_once]}, signals)
            for i in self._steps("encoding tiles or frames", len(pixels), at_once)
        )
        if len(pixels) <= at_once:
            return next(runs)
        # Where the tokens of a tile vary, all of them are as those of one; each is a row.
        varying = {"frames": 1, ROWS: self._rows(image)}
        shapes = {
            tensor.name: [
                varying.get(size, len(pixels)) if isinstance(size, str) else size for size in tensor.shape
            ]
            for tensor in outputs
        }
        return self._backend.stack(runs, shapes)

    def _steps(self, work: str, total: int, at_once: int) -> Iterator[int]:
        """Yield where each part of some work begins; of more than one it is told how far it has come."""
        several = total > at_once
        for begin in range(0, total, at_once):
            if several:
                self._tell(work, begin, total)
            yield begin
        if several:
            self._tell(work, total, total)

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

    def _keep(self, selector: Pruning) -> int:
        return selector.keep if selector is not None else self._manifest.candidates

    def _table(self, tokens: Sequence[DeviceTensor], rows: int) -> DeviceTensor:
        return self._backend.join(tokens, (1, rows, self._manifest.vision_encoder.width))
