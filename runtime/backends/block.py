"""The language model with its KV cache as one block of memory, where a step writes without copying what is there.

Dialects ``onnxruntime``, whose block is made larger when it is full, and ``static`` and ``decomposed``, whose size is
part of the graph: they are made for TensorRT, and here a bundle for a Jetson can be tried on a PC. What a step is fed
is the same as there (:mod:`~divprune_edge.models.steps`). The block never leaves the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from divprune_edge.manifest import LanguageInfo, LayerGroup
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.steps import STEPS, StepInputs, on_device
from divprune_edge.runtime.backends.binding import Binding
from divprune_edge.runtime.backends.memory import DeviceMemory, DeviceRows, TensorSpan, dtype_of
from divprune_edge.runtime.backends.outputs import Outputs
from divprune_edge.runtime.backends.session import (
    CacheRows,
    DeviceTensor,
    Ints,
    Link,
    Prediction,
    SlotTable,
    along,
)

MORE_ROWS = 256
"""Rows that a block begins with where its size is not part of the graph, and at least as many free ones when it has
grown; it doubles when it is full."""


MOST_PREFILLS = 16
"""Lengths of prefills, and rows before them, that are looked out for so that the next ones like them are captured."""


class BlockSession(SlotTable):
    """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`.

    The block of a layer's keys, or values, is [slots, kv_heads, capacity, head_dim], so that a sequence's cache is one
    piece of it: prefill is bound to that piece, a decode step to all slots up to the last one that it steps.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        memory: DeviceMemory,
        info: LanguageInfo,
        group: LayerGroup,
        slots: int,
        link: Link | None = None,
    ) -> None:
        super().__init__(info, group, slots, link)
        self._session, self._memory = session, memory
        self._facts = DIALECTS[info.dialect]
        self._tensors = len(group.cache_tensors)
        self._views: dict[tuple[int, ...], _View] = {}
        self._prefilled: set[tuple[int, ...]] = set()
        # Hidden rows have no weight, but nothing times what is not a number is not a number.
        self._capacity = group.capacity or min(MORE_ROWS, info.context)
        self.block = memory.zeros(self._shape, info.cache_dtype)

    @property
    def capacity(self) -> int:
        """Rows that each slot has room for at present."""
        return self._capacity

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        slot = self.take(visual)
        if rows:
            assert isinstance(rows, DeviceRows)
            self._grow(rows.length)
            for own, theirs in self._beside(slot, rows):
                self._memory.copy(theirs, np.arange(rows.length), own)
            self.lengths[slot] = rows.length
        return slot

    def make_room(self, slot: int, count: int) -> None:
        """Grow where the size is not part of the graph."""
        super().make_room(slot, count)
        self._grow(self.length(slot) + count)

    def prefill(self, slot: int, ids: Ints, positions: Ints) -> Prediction:
        """Run one step on the slot's piece of the cache."""
        lengths, seq = self.lengths, ids.shape[1]
        view = self._prefill_view(slot, seq)
        if self._info.takes_ids:
            view.show(self.visual[slot])
        view.run(self._feed(ids, positions, lengths[slot : slot + 1]), seq, lengths, [slot])
        return view.outputs.read(0)

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """Run one step on all slots up to the last of these; what it writes for others lies behind their rows."""
        lengths, stepped = self.lengths, list(ids)
        for slot in stepped:
            self.check_room(slot, 1)
        count = max(stepped) + 1
        # Those that wait are fed padding behind their rows, so that they need room for it as well. One that has none
        # left to grow into gets it on its last row: it cannot go on but by giving that up.
        self._grow(min(int(lengths[:count].max()) + 1, self._room))
        held = np.minimum(lengths[:count], self._capacity - 1)
        row, places = np.zeros((count, 1), np.int64), held[:, None].copy()
        for slot, token in ids.items():
            row[slot] = token
            if positions is not None:
                places[slot] = positions[slot]
        view = self._view(0, count, steady=self._steady)
        view.run(self._feed(row, places, held, steady=self._steady), 1, held, stepped)
        lengths[stepped] += 1
        return {slot: view.outputs.read(slot) for slot in stepped}

    def order(self, stepped: Sequence[int]) -> tuple[int, ...]:
        """Return for which slots the rows of the next step of these are: all up to the last one."""
        return tuple(range(max(stepped) + 1))

    def rows(self, slot: int, length: int) -> DeviceRows:
        """Copy on the device."""
        info = self._info
        kept = DeviceRows.room(
            self._memory, info.cache_dtype, self._tensors, (info.kv_heads, length, info.head_dim)
        )
        for own, theirs in self._beside(slot, kept):
            self._memory.copy(own, np.arange(length), theirs)
        return kept

    def _beside(self, slot: int, rows: DeviceRows) -> Iterator[tuple[TensorSpan, TensorSpan]]:
        """Yield a slot's cache in pieces, each with the rows of the same tensors."""
        # Neighbours here are neighbours there where there is one slot: then one piece does for all tensors.
        at_once = self._tensors if self.slots == 1 else 1
        for i in range(0, self._tensors, at_once):
            yield self._piece(i, slot, at_once), rows.span(i, at_once)

    @property
    def _shape(self) -> tuple[int, ...]:
        info = self._info
        return self._tensors, self.slots, info.kv_heads, self._capacity, info.head_dim

    def _piece(self, tensor: int, slot: int, count: int = 1) -> TensorSpan:
        """Return a slot's cache of ``count`` neighbouring tensors; of several, only where there is one slot."""
        _, slots, heads, capacity, width = self._shape
        begin = (tensor * slots + slot) * heads * capacity * width
        return TensorSpan(self.block, self._info.cache_dtype, (count * heads, capacity, width), begin)

    @property
    def _steady(self) -> bool:
        """Whether runs may be captured: what one graph of a chain hands to the next lies somewhere else each time."""
        return self._memory.captures_of(self._session) and self._info.takes_ids and not self._handed

    def _feed(self, ids: Ints, positions: Ints, lengths: Ints, *, steady: bool = False) -> StepInputs:
        places = along(positions, self._axes)
        step = STEPS[self._info.dialect](ids, places, lengths, self._capacity, self._info.window)
        inputs = {name: value for name, value in step.items() if name in self._fed}
        return on_device(inputs, self._capacity) if steady else inputs

    def _view(self, first: int, count: int, *piece: int, steady: bool = False) -> _View:
        key = first, count, steady, *piece
        if key not in self._views:
            self._views[key] = _View(self, first, count, steady)
        return self._views[key]

    def _prefill_view(self, slot: int, seq: int) -> _View:
        """Return a view of one slot; one to capture where such a piece came before, behind as many rows."""
        if not self._steady:
            return self._view(slot, 1)
        piece = int(self.lengths[slot]), seq, int(self.visual[slot].shape()[1])
        if (slot, *piece) in self._prefilled:
            return self._view(slot, 1, *piece, steady=True)
        if len(self._prefilled) < MOST_PREFILLS:
            self._prefilled.add((slot, *piece))
        return self._view(slot, 1)

    def _grow(self, rows: int) -> None:
        if rows <= self._capacity:
            return
        held, before, whole = self.block, self._capacity, self._tensors * self.slots * self._info.kv_heads
        self._capacity = min(max(rows + MORE_ROWS, 2 * before), self._info.context)
        self._views.clear()
        self.block = self._memory.empty(self._shape, self._info.cache_dtype)
        old, new = (
            TensorSpan(value, self._info.cache_dtype, (whole, capacity, self._info.head_dim))
            for value, capacity in ((held, before), (self.block, self._capacity))
        )
        self._memory.copy(old, np.arange(before), new)


class _View:
    """Some neighbouring slots as the graph's batch, bound once: cache, outputs, and ids that are no visual tokens'."""

    def __init__(self, owner: BlockSession, first: int, count: int, steady: bool) -> None:
        info, memory = owner._info, owner._memory
        self._owner, self._first, self._count = owner, first, count
        self._memory, self._steady = memory, steady
        self._shown: DeviceTensor = None
        self._names = owner._group.cache_tensors
        self._hands_out = owner._facts.hands_out_rows
        self.binding = Binding(owner._session, memory, steady=steady)
        self.outputs = Outputs(self.binding, memory, info, count)
        for i, name in enumerate(self._names):
            piece = owner._piece(i, first)
            self.binding.place(
                piece,
                (count, info.kv_heads, *piece.shape[1:]),
                source=f"past_key_values.{name}",
                target=None if self._hands_out else f"present.{name}",
            )
        if info.takes_ids:
            nothing = np.zeros((count, 1, int(info.visual.shape[2])), info.visual.dtype)
            self.binding.input("visual_tokens", memory.upload(nothing))
        if self._hands_out:
            self._block = memory.on_host(owner.block)
            self._new = self._block[:0, :0, :, :0]

    def show(self, visual: DeviceTensor) -> None:
        """Let ids refer to ``visual`` [1, K, D]; where nothing may move, to a copy of it."""
        if self._steady:
            room = self._shown or self._memory.empty(visual.shape(), dtype_of(visual))
            self._memory.put(visual, room, 0)
            if self._shown is not None:
                return
            self._shown = visual = room
        self.binding.input("visual_tokens", visual)

    def run(self, inputs: StepInputs, seq: int, lengths: Ints, stepped: Sequence[int]) -> None:
        """Run a step of ``seq`` ids per sequence; new rows that the graph hands out go where ``stepped`` end."""
        self.binding.arrays(inputs)
        if self._hands_out and self._new.shape[3:4] != (seq,):
            self._bind_new(seq)
        self.outputs.renew()
        owner = self._owner
        self.binding.fed(owner.link.fed)
        if owner._handed:
            owner.link.handed = self.binding.make(owner._handed)
        else:
            self.binding.run()
        owner.link.order = tuple(range(self._first, self._first + self._count))
        if self._hands_out:
            for slot in stepped:
                begin = int(lengths[slot])
                self._block[:, slot, :, begin : begin + seq] = self._new[:, slot - self._first]

    def _bind_new(self, seq: int) -> None:
        tensors, _, heads, _, width = self._block.shape
        self._new = np.zeros((tensors, self._count, heads, seq, width), self._block.dtype)
        for name, part in zip(self._names, self._new, strict=True):
            self.binding.landing(f"new_key_values.{name}", part)
