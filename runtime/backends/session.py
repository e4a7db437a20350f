"""Sequences on the language model: a session has slots, and each slot holds one sequence with a KV cache of its own.

A sequence is prefilled in its slot alone, whatever the others do; one step decodes an id of as many sequences as one
likes. So they join and leave between steps, and a single question is a session of one slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo, LayerGroup

DeviceTensor = Any
"""A tensor in the backend's own form."""
CacheRows = Sequence[npt.NDArray[Any]]
"""The first rows of a KV cache, in the backend's own form: key and value of each layer, [1, kv_heads, rows, head_dim],
which may be on the device until they are read."""
Logits = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Positions = Sequence[int] | Ints
"""One for each id, or [3, ids]: time, height and width."""
Given = Mapping[str, Sequence[npt.NDArray[np.float32]]]
"""What a schedule's method takes beside what it reads: by name, of each image one number per visual token."""


@dataclass(frozen=True)
class Prediction:
    """What a language model says of the next id.

    Attributes:
        best: the id of the largest logit that may be sampled, the smallest of equals; None where the graph does not
            say, or no number is the largest.
        read: returns the logits, which are brought to the host only for that.
    """

    best: int | None
    read: Callable[[], Logits]

    @property
    def logits(self) -> Logits:
        """float32 [vocabulary], valid until the session's next call."""
        return self.read()


def best_of(found: int, vocabulary: int) -> int | None:
    """Return what the graph's ``next_id`` says: an id, or with the vocabulary's size that there is none."""
    return found if found < vocabulary else None


class LanguageSession(Protocol):
    """Slots on the language model; see the module's text."""

    @property
    def slots(self) -> int:
        """Sequences that there is room for."""
        ...

    @property
    def takes_whole(self) -> bool:
        """Whether a prompt with images is to be fed at once, for what leaves of it depends on all that precedes."""
        ...

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """Begin a sequence and return its slot.

        Args:
            visual: [1, K, D]; what the ids of the sequence may refer to.
            rows: what the cache holds at the start; nothing if None.

        Raises:
            UserError: every slot is taken.
        """
        ...

    def show(self, slot: int, visual: DeviceTensor) -> None:
        """Let the next ids of a sequence refer to ``visual`` [1, K, D]; the rows of its cache stay as they are.

        Raises:
            UserError: the backend does not take so many.
        """
        ...

    def give(self, slot: int, given: Given) -> None:
        """Hand what the next images of a sequence are cut by; nobody reads it where nothing leaves inside."""
        ...

    def remove(self, slot: int) -> None:
        """Forget a sequence; its slot is free, and nothing is copied."""
        ...

    def length(self, slot: int) -> int:
        """Return how many rows of its cache a sequence fills."""
        ...

    def extend(
        self,
        slot: int,
        ids: Sequence[int],
        positions: Positions | None = None,
        chunk: int | None = None,
        images: Sequence[int] = (),
    ) -> Prediction:
        """Append ids to one sequence and return what follows the last one.

        Args:
            slot: which sequence.
            ids: at least one id of the token table; below V a vocabulary row, V + i row i of the visual tokens.
            positions: of these ids for the rotary embedding, one for each or three; None: those of the rows that they
                fill.
            chunk: feed at most so many ids at a time (bounds memory; the result is the same).
            images: how many of the sequence's ids are visual tokens of each image, those of the last one last; where
                some leave inside the language model they do so image by image, and nobody else needs it.

        Raises:
            UserError: there is no room for so many ids, or the dialect takes no positions but the rows'.
        """
        ...

    def check_room(self, slot: int, count: int) -> None:
        """Check that ``count`` more vocabulary ids fit into a slot: a step fails for all of its sequences.

        Raises:
            UserError: they do not.
        """
        ...

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """Append one vocabulary id to each of these sequences, all at once; the others stay as they are.

        Args:
            ids: slot -> id.
            positions: slot -> position; None: that of the row.

        Returns:
            Slot -> what follows.

        Raises:
            UserError: as :meth:`extend`.
        """
        ...

    def gone(self, slot: int) -> tuple[Ints, ...]:
        """Return which of a sequence's tokens each cut left behind, by their number in it; none where it is one graph.

        Those that an earlier cut left behind are among them.
        """
        ...

    def truncate(self, slot: int, length: int) -> None:
        """Forget every row of a sequence from ``length`` on."""
        ...

    def rows(self, slot: int, length: int) -> CacheRows:
        """Return a copy of a sequence's first ``length`` rows, for another one to begin with."""
        ...


@dataclass
class Link:
    """What joins the graph of a session to those of a chain before and behind it.

    Attributes:
        fed: what its next run is fed beside what a step is fed anyway, by name: tensors on the device or arrays.
        handed: what its last run handed on, likewise, on the device.
        order: the slots that the rows of its last run were for; -1 for none.
    """

    fed: dict[str, Any] = field(default_factory=dict)
    handed: dict[str, DeviceTensor] = field(default_factory=dict)
    order: tuple[int, ...] = ()


class SlotTable:
    """What every session keeps of its slots: which are taken, by what, and the rows that each fills.

    A session is one of a group of layers, whose caches it owns; where there are several groups, each has its own.
    ``lengths`` is int64 [slots]; ``visual`` are the visual tokens of each slot's sequence, which must live as long.
    """

    def __init__(self, info: LanguageInfo, group: LayerGroup, slots: int, link: Link | None = None) -> None:
        self._info, self._group, self.link = info, group, link or Link()
        self._fed = {tensor.name for tensor in info.inputs}
        self._handed = [name for name in (one.name for one in info.outputs) if is_handed_on(name)]
        self._room, self._axes = group.room(info.context), info.axes
        self._taken = [False] * slots
        self.lengths = np.zeros(slots, np.int64)
        self.visual: list[DeviceTensor] = [None] * slots

    @property
    def slots(self) -> int:
        """See :class:`LanguageSession`, also for what follows."""
        return len(self._taken)

    @property
    def takes_whole(self) -> bool:
        """Nothing leaves here."""
        return False

    @property
    def most(self) -> int | None:
        """Ids that one run takes; None: any number."""
        return None

    def length(self, slot: int) -> int:
        """Rows in use."""
        return int(self.lengths[slot])

    def extend(
        self,
        slot: int,
        ids: Sequence[int],
        positions: Positions | None = None,
        chunk: int | None = None,
        images: Sequence[int] = (),
    ) -> Prediction:
        """One run per piece of at most ``chunk`` ids, and of no more than a run takes."""
        self.make_room(slot, len(ids))
        size = min(chunk or len(ids), self.most or len(ids))
        for part, places in pieces(ids, positions, self.length(slot), size):
            prediction = self.prefill(slot, part, places)
            self.lengths[slot] += part.shape[1]
        return prediction

    def prefill(self, slot: int, ids: Ints, positions: Ints) -> Prediction:
        """Run a piece of one sequence: ids [1, seq] at positions [1, seq], or [3, 1, seq], behind its rows."""
        raise NotImplementedError

    def show(self, slot: int, visual: DeviceTensor) -> None:
        """What was there before is let go."""
        self.visual[slot] = visual

    def give(self, slot: int, given: Given) -> None:
        """Nothing leaves inside the layers of one session."""

    def remove(self, slot: int) -> None:
        """What the slot holds is written over."""
        self._taken[slot] = False
        self.lengths[slot] = 0
        self.visual[slot] = None

    def gone(self, slot: int) -> tuple[Ints, ...]:
        """Nothing is cut here."""
        return ()

    def clear(self) -> None:
        """Remove all sequences."""
        for slot in range(self.slots):
            self.remove(slot)

    def truncate(self, slot: int, length: int) -> None:
        """Rows from ``length`` on are written over."""
        self.lengths[slot] = min(self.length(slot), length)

    def take(self, visual: DeviceTensor) -> int:
        """Take the first free slot for a sequence without rows.

        Raises:
            UserError: there is none.
        """
        if all(self._taken):
            raise UserError(
                f"All {self.slots} slots of the session are taken: remove a sequence, or ask for more slots.",
                code="slots-taken",
            )
        slot = self._taken.index(False)
        self._taken[slot] = True
        self.visual[slot] = visual
        return slot

    def make_room(self, slot: int, count: int) -> None:
        """See to it that ``count`` more tokens fit into a slot; errors as :meth:`check_room`."""
        self.check_room(slot, count)

    def check_room(self, slot: int, count: int) -> None:
        """Check that ``count`` more tokens fit into a slot.

        Raises:
            UserError: they do not; the sentence names both numbers.
        """
        check_room(self.length(slot) + count, self._room, fixed=self._room < self._info.context)


def is_handed_on(output: str) -> bool:
    """Whether an output of a language graph goes to the next graph of a chain, or to the choice between the two."""
    return output == "hidden_out" or output.startswith("scores.")


def check_room(total: int, room: int, *, fixed: bool) -> None:
    """Check that a sequence of ``total`` tokens fits; ``fixed``: the room is the cache's, not the model's own.

    Raises:
        UserError: it does not; the sentence names both numbers.
    """
    if total <= room:
        return
    place, remedy = f"the model's context holds {room}", "."
    if fixed:
        place = f"there is room for {room}"
        remedy = ": ask a shorter question, keep fewer visual tokens, or export with a larger --capacity."
    raise UserError(f"The sequence would have {total} tokens, but {place}{remedy}", code="sequence-too-long")


def along(positions: Ints, axes: int) -> Ints:
    """Return positions [n, seq] as the graph takes them: [3, n, seq] where a token has three, all the same here."""
    return np.tile(positions, (axes, 1, 1)) if axes > 1 and positions.ndim == 2 else positions


def pieces(ids: Sequence[int], positions: Positions | None, first: int, size: int) -> list[tuple[Ints, Ints]]:
    """Return ids in pieces of at most ``size``, each [1, seq], and their positions, each [1, seq] or [3, 1, seq].

    ``first`` is the first id's row.
    """
    row = np.asarray(ids, np.int64)
    places = np.arange(first, first + row.size) if positions is None else np.asarray(positions, np.int64)
    return [
        (
            np.ascontiguousarray(row[None, at : at + size]),
            np.ascontiguousarray(places[..., None, at : at + size]),
        )
        for at in range(0, row.size, size)
    ]
