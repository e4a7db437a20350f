"""Where the visual tokens stand in a prompt, and at which position every token does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Span:
    """The visual tokens of one image: ``rows`` of them, from index ``begin`` of the prompt's ids on."""

    begin: int
    rows: int


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """Where the visual tokens of an image are, k of them.

    Attributes:
        rows: of the visual tokens' table, int64 [k].
        places: int64 [axes, k]; their positions, from that of the image on. None: one after the other.
        ahead: positions that the whole image takes.
    """

    rows: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64] | None = None
    ahead: int = 0


@dataclass(frozen=True, eq=False)
class PromptIds:
    """Ids of the token table: below V a row of the vocabulary, V + i row i of the visual tokens.

    Attributes:
        ids: of the whole prompt; the visual tokens of several images are numbered through.
        spans: one per image, in order.
        positions: int64 [ids] for the rotary embedding, or [3, ids]: time, height and width. They say nothing of where
            a row of the cache lies.
        next_position: of the first id of the answer; those after it follow one by one.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    positions: npt.NDArray[np.int64]
    next_position: int

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
        rows = [int(row) for image in images for row in image.rows]
        result = self
        if any(row != j for j, row in enumerate(rows)):
            moved = (t if t < vocabulary else vocabulary + rows[t - vocabulary] for t in self.ids)
            result = replace(result, ids=tuple(moved))
        if all(image.places is None for image in images) and axes == 1:
            return result
        positions = np.empty((axes, len(self.ids)), np.int64)
        at = end = 0
        for span, image in zip(self.spans, images, strict=True):
            positions[:, end : span.begin] = at + np.arange(span.begin - end)
            at += span.begin - end
            end = span.begin + span.rows
            if image.places is None:
                positions[:, span.begin : end], ahead = at + np.arange(span.rows), span.rows
            else:
                positions[:, span.begin : end], ahead = at + image.places, image.ahead
            at += ahead
        positions[:, end:] = at + np.arange(len(self.ids) - end)
        return replace(
            result,
            positions=positions if axes > 1 else positions[0],
            next_position=at + len(self.ids) - end,
        )

    def __len__(self) -> int:
        return len(self.ids)


def lay_out(ids: Sequence[int], placeholder: int, images: Sequence[int], vocabulary: int) -> PromptIds:
    """Put visual tokens where the placeholders stand, and number the positions without a gap, as DivPrune does.

    Args:
        ids: of the rendered prompt, with one placeholder per image.
        placeholder: its id.
        images: the number of visual tokens of each image.
        vocabulary: V of the token table.
    """
    full: list[int] = []
    spans: list[Span] = []
    row = vocabulary
    counts = iter(images)
    for token in ids:
        if token != placeholder:
            full.append(token)
            continue
        rows = next(counts)
        spans.append(Span(len(full), rows))
        full.extend(range(row, row + rows))
        row += rows
    return PromptIds(tuple(full), tuple(spans), np.arange(len(full)), len(full))
