"""The language model as a chain of graphs between which visual tokens leave: several sessions that look like one.

Each graph has a session of its layers alone, with a cache of its own, in the same slots. Ids go into the first one,
hidden states from one to the next, and the last one gives the prediction. Where a piece of a prompt has visual tokens,
what the method reads of each comes to the host between two graphs, four bytes a token; it says which stay, and the
hidden states of the others are left behind, on the device. Everything else, a second question or a decode step, runs
through uncut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo
from divprune_edge.models.schedules import find_method
from divprune_edge.runtime.backends.pieces import Piece, by_id, images_in
from divprune_edge.runtime.backends.session import (
    CacheRows,
    DeviceTensor,
    Given,
    Ints,
    LanguageSession,
    Link,
    Positions,
    Prediction,
)

_ONE = np.zeros(1, np.int64)
"""What the inputs of a method are where it is asked for nothing."""


class Segment(LanguageSession, Protocol):
    """A session of one graph of the chain."""

    link: Link

    @property
    def most(self) -> int | None:
        """Ids that one run takes; None: any number."""
        ...

    def order(self, stepped: Sequence[int]) -> tuple[int, ...]:
        """Return for which slots the rows of the next step of these are, -1 for none."""
        ...


class Tensors(Protocol):
    """What a chain does with tensors on the device."""

    def take(self, tensor: DeviceTensor, rows: Ints, /, axis: int = 1) -> DeviceTensor:
        """Return some rows of a tensor."""
        ...

    def download(self, tensor: DeviceTensor, /) -> npt.NDArray[Any]:
        """Return a tensor's values."""
        ...


@dataclass
class _Sequence:
    """What a chain knows of the sequence in a slot; rows are those of the first group's cache.

    Attributes:
        gone: for each group, which rows it does not have, ascending.
        given: what the method takes beside what it reads, for the next piece that is cut.
        spans: first row and end of what was cut in one piece, visual tokens of all its images.
        kept: for each cut so far, which of the piece's visual tokens stayed, by their number among them.
    """

    gone: list[Ints]
    given: Given = field(default_factory=dict)
    spans: list[tuple[int, int]] = field(default_factory=list)
    kept: list[Ints] = field(default_factory=list)

    def length(self, group: int, rows: int) -> int:
        """Return how many of the first ``rows`` rows a group has."""
        return rows - int(np.searchsorted(self.gone[group], rows))


@dataclass(frozen=True, eq=False)
class ChainRows(Sequence[npt.NDArray[Any]]):
    """The first rows of all groups' caches, for other sequences to begin with."""

    groups: tuple[CacheRows, ...]
    state: _Sequence

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.groups)

    def __getitem__(self, index: Any) -> Any:
        for rows in self.groups:
            if index < len(rows):
                return rows[index]
            index -= len(rows)
        raise IndexError(index)


class ChainSession:
    """See the module's text, and :class:`~divprune_edge.runtime.backends.session.LanguageSession`.

    Args:
        groups: a session for each graph.
        tensors: where their tensors lie.
        info: the language model's entry, with its schedule.
    """

    def __init__(self, groups: Sequence[Segment], tensors: Tensors, info: LanguageInfo) -> None:
        assert info.schedule is not None
        self._groups, self._tensors, self._info = list(groups), tensors, info
        self._method = method = find_method(info.schedule.method)
        self._schedule = info.schedule
        self._compact = self._schedule.numbering == "compact"
        self._inputs = [{one.name for one in graph.inputs} for graph in info.graphs]
        # Of the layer behind a cut the keys before this piece lie in another graph's cache, and whoever asks for all
        # rows means those of the prompt: nothing may be before it.
        self._whole = any(watch.offset > 0 for watch in method.watches) or any(
            "query_rows.all" in inputs for inputs in self._inputs
        )
        self._sequences: dict[int, _Sequence] = {}

    @property
    def slots(self) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        return self._groups[0].slots

    @property
    def takes_whole(self) -> bool:
        """Where the method reads the layer behind a cut, or all rows."""
        return self._whole

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """Begin in the same slot of each group."""
        if rows and isinstance(rows, ChainRows):
            state = _Sequence([gone.copy() for gone in rows.state.gone], spans=list(rows.state.spans))
            held: Sequence[CacheRows | None] = rows.groups
        else:
            state = _Sequence([np.empty(0, np.int64) for _ in self._groups])
            held = [None] * len(self._groups)
        # The first group alone reads visual tokens.
        seen = [visual, *[None] * (len(self._groups) - 1)]
        begun: list[tuple[Segment, int]] = []
        try:
            for group, *told in zip(self._groups, seen, held, strict=True):
                begun.append((group, group.add(*told)))
        except BaseException:
            for group, slot in begun:
                group.remove(slot)
            raise
        (slot,) = {slot for _, slot in begun}
        self._sequences[slot] = state
        return slot

    def give(self, slot: int, given: Given) -> None:
        """For the next piece that is cut."""
        self._sequences[slot].given = given

    def show(self, slot: int, visual: DeviceTensor) -> None:
        """The first group reads them."""
        self._groups[0].show(slot, visual)

    def remove(self, slot: int) -> None:
        """Leave every group."""
        for group in self._groups:
            group.remove(slot)
        del self._sequences[slot]

    def length(self, slot: int) -> int:
        """Rows of the first group, which all tokens pass."""
        return self._groups[0].length(slot)

    def lengths(self, slot: int) -> tuple[int, ...]:
        """Return how many rows of its cache each group fills."""
        return tuple(group.length(slot) for group in self._groups)

    def kept(self, slot: int) -> tuple[Ints, ...]:
        """Return which visual tokens of the last piece that had any each cut left, by their number among them."""
        return tuple(self._sequences[slot].kept)

    def gone(self, slot: int) -> tuple[Ints, ...]:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`."""
        return tuple(self._sequences[slot].gone[1:])

    def extend(
        self,
        slot: int,
        ids: Sequence[int],
        positions: Positions | None = None,
        chunk: int | None = None,
        images: Sequence[int] = (),
    ) -> Prediction:
        """Run ids through all groups; a piece with visual tokens is cut, and is one piece.

        ``images`` says how many of the ids are visual tokens of each image, in order; without it, visual tokens that
        follow each other are one image.

        Raises:
            UserError: a group has no room for what comes to it, or the piece is longer than ``chunk``.
        """
        row = np.asarray(ids, np.int64)
        found = images_in(np.flatnonzero(row >= self._info.embedding_rows), images, row.size)
        places = self._places(slot, row.size, positions)
        sizes = self._info.group_tokens(row.size, [one.size for one in found])
        for group, size in reversed([*zip(self._groups, sizes, strict=True)]):  # the last has the least
            group.check_room(slot, size)
        if found:
            self._check_whole(sizes, chunk)
            return self._cut(slot, row, places, found)
        size = min(chunk or row.size, *(group.most or row.size for group in self._groups))
        for first in range(0, row.size, size):
            prediction = self._through(
                slot, row[first : first + size], places[..., first : first + size], positions is None
            )
        return prediction

    def _check_whole(self, sizes: Sequence[int], chunk: int | None) -> None:
        """Check that so many ids for each group can be read in one piece.

        Raises:
            UserError: they are more than ``chunk``, or than an engine takes.
        """
        if chunk is not None and chunk < sizes[0]:
            raise UserError(
                "A prompt with images is read in one piece where visual tokens leave inside the language model, "
                f"but prefill_chunk is {chunk} and there are {sizes[0]} ids: leave it out.",
                code="schedule-chunk",
            )
        for group, size in zip(self._groups, sizes, strict=True):
            if group.most is not None and size > group.most:
                raise UserError(
                    "A prompt with images is read in one piece where visual tokens leave inside the language model, "
                    f"but there are {size} ids and an engine that was built for {group.most}: build it with 'python -m "
                    f"runtime build BUNDLE --max-prompt {sizes[0]}'.",
                    code="schedule-chunk",
                )

    def check_room(self, slot: int, count: int) -> None:
        """Check each group."""
        for group in self._groups:
            group.check_room(slot, count)

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """Run one step of each group, one behind the other."""
        for slot in ids:
            self.check_room(slot, 1)
        placed = positions
        if placed is None and not self._compact:
            placed = {slot: self.length(slot) for slot in ids}
        hidden: DeviceTensor = None
        before: tuple[int, ...] = ()
        for index, group in enumerate(self._groups):
            if index:
                hidden = self._ordered(hidden, before, group, ids)
            self._feed(index, hidden, {})
            found = group.step(ids, positions if index == 0 else None if self._compact else placed)
            hidden, before = group.link.handed.get("hidden_out"), group.link.order
        return found

    def truncate(self, slot: int, length: int) -> None:
        """Forget rows; of images that were cut in one piece all, if any."""
        state = self._sequences[slot]
        for first, end in state.spans:
            if first < length < end:
                length = first
        for index, group in enumerate(self._groups):
            group.truncate(slot, state.length(index, length))
        state.gone = [gone[gone < length] for gone in state.gone]
        state.spans = [span for span in state.spans if span[1] <= length]

    def rows(self, slot: int, length: int) -> CacheRows:
        """Copy of each group; none where a method has to see the whole prompt in one piece."""
        if self._whole:
            return ()
        state = self._sequences[slot]
        held = _Sequence(
            [gone[gone < length] for gone in state.gone],
            spans=[span for span in state.spans if span[1] <= length],
        )
        return ChainRows(
            tuple(group.rows(slot, state.length(index, length)) for index, group in enumerate(self._groups)),
            held,
        )

    def _places(self, slot: int, count: int, positions: Positions | None) -> Ints:
        if positions is not None:
            return np.asarray(positions, np.int64)
        return np.arange(self.length(slot), self.length(slot) + count)

    def _through(self, slot: int, ids: Ints, places: Ints, by_rows: bool) -> Prediction:
        """Run a piece uncut."""
        hidden: DeviceTensor = None
        for index, group in enumerate(self._groups):
            self._feed(index, hidden, {})
            prediction = group.extend(slot, ids.tolist(), self._stage(index, places, by_rows))
            hidden = group.link.handed.get("hidden_out")
        return prediction

    def _stage(self, index: int, places: Ints, by_rows: bool) -> Positions | None:
        """Return the positions in a group of tokens that had ``places``; None: those of its cache's rows."""
        compact = by_rows if index == 0 else self._compact
        return None if compact else places

    def _cut(self, slot: int, ids: Ints, places: Ints, images: list[Ints]) -> Prediction:
        """Run a piece, and leave visual tokens behind between the groups."""
        state, begin = self._sequences[slot], self.length(slot)
        piece = Piece(np.arange(ids.size), images, by_id(state.given, images, ids.size))
        state.given = {}
        visual = piece.visual
        state.kept = []
        hidden: DeviceTensor = None
        for index, group in enumerate(self._groups):
            self._feed(index, hidden, piece.asked(group.length(slot)))
            prediction = group.extend(
                slot, ids[piece.rows].tolist(), self._stage(index, places[..., piece.rows], False)
            )
            gone = np.setdiff1d(np.arange(ids.size), piece.rows)
            state.gone[index] = np.concatenate([state.gone[index], begin + gone])
            if index == len(self._groups) - 1:
                break
            hidden, before = group.link.handed.pop("hidden_out"), piece.rows
            read = {
                name.removeprefix("scores."): np.array(self._tensors.download(value), np.float32)
                for name, value in group.link.handed.items()
            }
            piece.cut(self._method, read, self._schedule.cuts[index].keep)
            state.kept.append(np.searchsorted(visual, piece.visual))
            if piece.rows.size < before.size:
                hidden = self._tensors.take(hidden, np.searchsorted(before, piece.rows))
        state.spans.append((begin + int(visual[0]), begin + int(visual[-1]) + 1))
        return prediction

    def _feed(self, index: int, hidden: DeviceTensor, asked: Mapping[str, Ints]) -> None:
        """Say what a group's next run is fed beside its own."""
        fed: dict[str, Any] = {
            name: np.ascontiguousarray(asked.get(name, _ONE))
            for name in self._inputs[index]
            if name in ("visual_rows", "key_rows", "past_rows") or name.startswith("query_rows.")
        }
        if index:
            fed["hidden"] = hidden
        self._groups[index].link.fed = fed

    def _ordered(
        self, hidden: DeviceTensor, before: tuple[int, ...], group: Segment, ids: Mapping[int, int]
    ) -> DeviceTensor:
        """Return the hidden states of a step in the order in which a group steps its slots."""
        wanted = group.order(list(ids))
        if wanted == before:
            return hidden
        places = [before.index(slot) if slot in before else 0 for slot in wanted]
        return self._tensors.take(hidden, np.array(places, np.int64), axis=0)
