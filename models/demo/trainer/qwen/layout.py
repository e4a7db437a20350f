"""What stands before the questions of a pack: token ids, and grids of visual tokens with their three positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checkpoint import FORM, VISION_END, VISION_START

Size = tuple[int, int]
"""Visual tokens down and across."""


@dataclass(frozen=True)
class Layout:
    """Token ids, and grids where images or a clip's frames stand."""

    segments: tuple[int | Size, ...]

    @property
    def grids(self) -> tuple[Size, ...]:
        """The grids in their order."""
        return tuple(segment for segment in self.segments if not isinstance(segment, int))

    def positions(self) -> tuple[Tensor, int]:
        """Positions int64 [prefix, 3] (time, height, width), and where text goes on after them.

        An image starts at the next position; after it text goes on behind its longer side (Qwen3-VL).
        """
        found, at = [], 0
        for segment in self.segments:
            if isinstance(segment, int):
                found.append(torch.full((1, 3), at))
                at += 1
            else:
                down, across = segment
                rows, columns = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
                found.append(at + torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3))
                at += max(segment)
        return torch.cat(found), at

    def embed(self, table: nn.Embedding, visual: Sequence[Tensor]) -> Tensor:
        """Embeddings [batch, prefix, width] of the ids and, in their places, each grid's visual tokens."""
        return self._filled(visual, lambda token: table(torch.tensor([token])))

    def beside(self, visual: Sequence[Tensor]) -> Tensor:
        """[batch, prefix, width]: what is beside the visual tokens, and zeros for the ids."""
        return self._filled(visual, lambda _: torch.zeros(1, visual[0].shape[-1]))

    def _filled(self, visual: Sequence[Tensor], row_of: Callable[[int], Tensor]) -> Tensor:
        rest, batch, parts = iter(visual), len(visual[0]), []
        for segment in self.segments:
            if isinstance(segment, int):
                parts.append(row_of(segment).expand(batch, 1, -1))
            else:
                parts.append(next(rest))
        return torch.cat(parts, 1)


def of_images(sizes: Sequence[Size]) -> Layout:
    """Images one after the other, each between its two marks."""
    each: list[int | Size] = []
    for size in sizes:
        each += (VISION_START, size, VISION_END)
    return Layout((*FORM.user, *each))


def of_clip(size: Size, times: Sequence[float]) -> Layout:
    """A clip's frames, two by two, with the time before each pair."""
    each: list[int | Size] = []
    for time in times:
        each += (*FORM.encode(f"<{time:.1f} seconds>"), VISION_START, size, VISION_END)
    return Layout((*FORM.user, *each))
