"""Where the visual tokens stand in a prompt, and at which position every token does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Span:
    """The visual tokens of one image: ``rows`` of them, from index ``begin`` of the prompt's ids on."""

    begin: int
    rows: int


@dataclass(frozen=True)
class PromptIds:
    """Ids of the token table: below V a row of the vocabulary, V + i row i of the visual tokens.

    Attributes:
        ids: of the whole prompt; the visual tokens of several images are numbered through.
        spans: one per image, in order.
        positions: of every id, for the rotary embedding. They say nothing of where a row of the cache lies.
        next_position: of the first id of the answer; those after it follow one by one.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    positions: Sequence[int]
    next_position: int

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all images."""
        return sum(span.rows for span in self.spans)

    @property
    def before_image(self) -> tuple[int, ...]:
        """The ids in front of the first visual token: the same for every image and every question."""
        return self.ids[: self.spans[0].begin] if self.spans else ()

    def placed(self, vocabulary: int, rows: Sequence[int]) -> PromptIds:
        """Return the same prompt with its j-th visual token at row ``rows[j]`` of the visual tokens."""
        if all(row == j for j, row in enumerate(rows)):
            return self
        ids = (
            token if token < vocabulary else vocabulary + int(rows[token - vocabulary]) for token in self.ids
        )
        return replace(self, ids=tuple(ids))

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
    return PromptIds(tuple(full), tuple(spans), range(len(full)), len(full))
