"""Where the visual tokens stand in a prompt, and at which position every token does."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Span:
    """The visual tokens of one image, or of a part of a clip: ``rows``, from index ``begin`` of the prompt's ids on."""

    begin: int
    rows: int


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """Where the visual tokens of an image are, k of them.

    Attributes:
        rows: of the visual tokens' table, int64 [k].
        places: int64 [axes, k]; their positions, from that of their span on. None: one after the other.
        ahead: positions that each whole span takes.
        spans: how many of them are in each, for a clip with text between its frames; None: they are one.
    """

    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64] | None = None
    ahead: int = 0
    spans: tuple[int, ...] | None = None

    @property
    def counts(self) -> tuple[int, ...]:
        """Its visual tokens in each span."""
        return (len(self.rows),) if self.spans is None else self.spans


@dataclass(frozen=True, eq=False)
class PromptIds:
    """Ids of the token table: below V a row of the vocabulary, V + i row i of the visual tokens.

    Attributes:
        ids: of the whole prompt; the visual tokens of several images are numbered through.
        spans: one per image, several of some clips, in order.
        positions: int64 [ids] for the rotary embedding, or [3, ids]: time, height and width. They say nothing of where
            a row of the cache lies.
        next_position: of the first id of the answer; those after it follow one by one. A clip's tokens may lie behind
            it.
        images: the visual tokens of each image or clip, in order, once it is known which were kept.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    positions: npt.NDArray[np.int64]
    next_position: int
    images: tuple[int, ...] = ()

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all images."""
        return sum(span.rows for span in self.spans)

    @property
    def before_image(self) -> tuple[int, ...]:
        """The ids in front of the first visual token: the same for every image and every question."""
        return self.ids[: self.spans[0].begin] if self.spans else ()

    def placed(self, vocabulary: int, images: Sequence[PlacedImage], axes: int = 1) -> PromptIds:
        """Return the same prompt with its visual tokens at their rows of the table, and at their own positions.

        An image's tokens lie where they did before it was pruned, and text goes on behind it as if it had not been.
        Where images say nothing of positions, all are numbered without a gap.
        """
        ids: list[int] = []
        spans: list[Span] = []
        parts: list[npt.NDArray[np.int64]] = []
        at = end = 0

        def text(until: int | None) -> int:
            words = self.ids[end:until]
            ids.extend(words)
            parts.append(np.tile(at + np.arange(len(words)), (axes, 1)))
            return at + len(words)

        before = iter(self.spans)
        for image in images:
            cuts = np.cumsum((0, *image.counts))
            for first, last in pairwise(cuts.tolist()):
                span, kept = next(before), slice(first, last)
                at, end = text(span.begin), span.begin + span.rows
                spans.append(Span(len(ids), last - first))
                ids.extend((vocabulary + image.rows[kept]).tolist())
                if image.places is None:
                    parts.append(np.tile(at + np.arange(last - first), (axes, 1)))
                    at += last - first
                else:
                    parts.append(np.broadcast_to(at + image.places[:, kept], (axes, last - first)))
                    at += image.ahead
        at = text(None)
        positions = np.concatenate(parts, axis=1)
        counts = tuple(len(image.rows) for image in images)
        return PromptIds(tuple(ids), tuple(spans), positions if axes > 1 else positions[0], at, counts)

    def __len__(self) -> int:
        return len(self.ids)


def lay_out(
    ids: Sequence[int], placeholders: Collection[int | None], images: Sequence[int], vocabulary: int
) -> PromptIds:
    """Put visual tokens where the placeholders stand, and number the positions without a gap, as DivPrune does.

    Args:
        ids: of the rendered prompt, with one placeholder per image, or per span of a clip.
        placeholders: their ids.
        images: the number of visual tokens for each placeholder.
        vocabulary: V of the token table.
    """
    full: list[int] = []
    spans: list[Span] = []
    row = vocabulary
    counts = iter(images)
    for token in ids:
        if token not in placeholders:
            full.append(token)
            continue
        rows = next(counts)
        spans.append(Span(len(full), rows))
        full.extend(range(row, row + rows))
        row += rows
    return PromptIds(tuple(full), tuple(spans), np.arange(len(full)), len(full))
