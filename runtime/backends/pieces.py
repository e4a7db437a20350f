"""A piece of a prompt on its way through a chain of graphs: what is left of it, and what a method takes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.models.schedules import Method
from divprune_edge.models.schedules.method import query_rows
from divprune_edge.runtime.backends.session import Ints

Values = npt.NDArray[np.float32]


@dataclass
class Piece:
    """What is left of a piece of a prompt on its way through the chain.

    Attributes:
        rows: int64 [n]; which of the piece's ids, ascending.
        images: for each image which of these are its visual tokens; those of its ids, not of ``rows``.
        given: what the method takes -> what was given of each visual token of the piece, by its id.
        sums: watches that sum -> what each has so far, likewise.
    """

    rows: Ints
    images: list[Ints]
    given: dict[str, Values]
    sums: dict[str, Values] = field(default_factory=dict)

    @property
    def visual(self) -> Ints:
        """The ids that are visual tokens and still there."""
        return np.sort(np.concatenate(self.images))

    def asked(self, past: int) -> dict[str, Ints]:
        """Return what a method's inputs are for what is left, behind ``past`` rows of the cache."""
        visual = np.searchsorted(self.rows, self.visual)
        if not visual.size:
            return {}
        text = np.setdiff1d(np.arange(self.rows.size), visual)
        return {
            "visual_rows": visual,
            "key_rows": np.arange(past + self.rows.size),
            "past_rows": np.array([past]),
            **{
                f"query_rows.{name}": query_rows(name, visual, text)
                for name in ("last", "asked", "text", "visual", "all")
            },
        }

    def cut(self, method: Method, read: dict[str, Values], keep: int) -> None:
        """Let the method say which ``keep`` visual tokens of each image stay.

        ``read`` is what a graph has read of each visual token that is there, by watch.
        """
        visual = self.visual
        if not visual.size:
            return
        values = {**read, **{name: value[visual] for name, value in self.given.items()}}
        for watch in method.watches:
            if watch.summed:
                total = self.sums.setdefault(watch.name, np.zeros(int(self.rows[-1]) + 1, np.float32))
                if watch.name in read:
                    total[visual] += read[watch.name]
                values[watch.name] = total[visual]
        images = []
        for image in self.images:
            if image.size <= keep:
                images.append(image)
            elif not keep:
                images.append(image[:0])
            else:
                assert method.picks is not None, "its cuts keep none"
                own = np.searchsorted(visual, image)
                picks = method.picks({name: value[own] for name, value in values.items()}, image.size, keep)
                images.append(image[np.sort(picks)])
        gone = np.setdiff1d(visual, np.concatenate(images))
        self.rows, self.images = np.setdiff1d(self.rows, gone), images


def by_id(given: Mapping[str, Sequence[Values]], images: Sequence[Ints], size: int) -> dict[str, Values]:
    """Return values of the visual tokens of each image by their ids in a piece of so many.

    Raises:
        UserError: they are of other images.
    """
    found = {}
    for name, values in given.items():
        counts = [len(value) for value in values], [image.size for image in images]
        if counts[0] != counts[1]:
            raise UserError(
                f"'{name}' has values of {counts[0]} visual tokens, but the images have {counts[1]}: give one "
                "array for each image, with a number for each visual token that its selector keeps, in their order.",
                code="schedule-values",
            )
        found[name] = np.zeros(size, np.float32)
        for image, value in zip(images, values, strict=True):
            found[name][image] = value
    return found


def images_in(visual: Ints, counts: Sequence[int], length: int) -> list[Ints]:
    """Return which ids are the visual tokens of each image; the last id of a piece stays, whatever it is."""
    # What was fed before this piece is missing at the front, so that images are counted from the end.
    ends = visual.size - np.cumsum(counts[::-1])[::-1]
    if not ends.size:
        ends = np.flatnonzero(np.diff(visual) != 1) + 1
    found = (one[one != length - 1] for one in np.split(visual, np.maximum(ends, 0)))
    return [one for one in found if one.size]
