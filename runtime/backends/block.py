"""The language model with its KV cache as one block of memory, where a step writes without copying what is there.

Dialects ``onnxruntime``, whose block is made larger when it is full, and ``static`` and ``decomposed``, whose size is
part of the graph: they are made for TensorRT, and here a bundle for a Jetson can be tried on a PC. What a step is fed
is the same as there (:mod:`~divprune_edge.models.steps`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.manifest import LanguageInfo, LayerGroup
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.steps import STEPS, StepInputs
from divprune_edge.runtime.backends.binding import CACHE_TYPES, run_bound
from divprune_edge.runtime.backends.session import (
    CacheRows,
    DeviceTensor,
    Ints,
    Logits,
    Positions,
    SlotTable,
    along,
    pieces,
)

FIRST_CAPACITY = 256
"""Rows that a block begins with where its size is not part of the graph; they double when they are full."""


class BlockSession(SlotTable):
    """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`.

    The block of a layer's keys, or values, is [slots, kv_heads, capacity, head_dim], so that a sequence's cache is one
    piece of it: prefill is bound to that piece, a decode step to all slots up to the last one that it steps.
    """

    def __init__(
        self, session: ort.InferenceSession, device: str, info: LanguageInfo, group: LayerGroup, slots: int
    ) -> None:
        super().__init__(info, group, slots)
        self._session, self._device = session, device
        self._facts = DIALECTS[info.dialect]
        self._reserve(group.capacity or min(FIRST_CAPACITY, info.context))

    @property
    def capacity(self) -> int:
        """Rows that each slot has room for at present."""
        return self._capacity

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        slot = self.take(visual)
        if rows:
            length = rows[0].shape[2]
            self._grow(length)
            self._write(slot, rows)
            self.lengths[slot] = length
        return slot

    def extend(
        self, slot: int, ids: Sequence[int], positions: Positions | None = None, chunk: int | None = None
    ) -> Logits:
        """Run one step per chunk on the slot's piece of the cache."""
        lengths = self.lengths
        self.check_room(slot, len(ids))
        self._grow(int(lengths[slot]) + len(ids))
        view = self._view(slot, 1)
        view.bind_visual(self.visual[slot])
        for part, places in pieces(ids, positions, int(lengths[slot]), chunk):
            view.run(self._feed(part, places, lengths[slot : slot + 1]), part.shape[1], lengths, [slot])
            lengths[slot] += part.shape[1]
        logits: Logits = view.logits[0]
        return logits

    def step(self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None) -> dict[int, Logits]:
        """Run one step on all slots up to the last of these; what it writes for others lies behind their rows."""
        lengths, stepped = self.lengths, list(ids)
        for slot in stepped:
            self.check_room(slot, 1)
        self._grow(int(lengths[stepped].max()) + 1)
        count = max(stepped) + 1
        # A sequence that is full and waits is fed padding, too: on its last row, which it gives up before it goes on.
        held = np.minimum(lengths[:count], self._capacity - 1)
        row, places = np.zeros((count, 1), np.int64), held[:, None].copy()
        for slot, token in ids.items():
            row[slot] = token
            if positions is not None:
                places[slot] = positions[slot]
        view = self._view(0, count)
        view.run(self._feed(row, places, held), 1, held, stepped)
        lengths[stepped] += 1
        return {slot: view.logits[slot] for slot in stepped}

    def rows(self, slot: int, length: int) -> CacheRows:
        """Copy through the host, also on CUDA."""
        return tuple(np.array(whole[slot : slot + 1, :, :length]) for whole in self._host())

    def _feed(self, ids: Ints, positions: Ints, lengths: Ints) -> StepInputs:
        places = along(positions, self._axes)
        return STEPS[self._info.dialect](ids, places, lengths, self._capacity, self._info.window)

    def _view(self, first: int, count: int) -> _View:
        key = first, count
        if key not in self._views:
            self._views[key] = _View(self, first, count)
        return self._views[key]

    def _grow(self, rows: int) -> None:
        if rows > self._capacity:
            held, before = self._host(), self._capacity
            self._reserve(min(max(rows, 2 * before), self._info.context))
            self._store([(np.s_[:, :, :before], whole) for whole in held])

    def _reserve(self, capacity: int) -> None:
        """Make an empty cache of ``capacity`` rows."""
        info, slots = self._info, self.slots
        shape = (2 * self._group.layers, slots, info.kv_heads, capacity, info.head_dim)
        # Hidden rows have no weight, but nothing times what is not a number is not a number.
        self.block = np.zeros(shape, CACHE_TYPES[info.cache_dtype])
        self._values = [ort.OrtValue.ortvalue_from_numpy(whole, self._device) for whole in self.block]
        self._capacity = capacity
        self._views: dict[tuple[int, int], _View] = {}

    def _host(self) -> Sequence[npt.NDArray[Any]]:
        """Return the cache of each tensor on the host; on the CPU that is the cache itself."""
        return list(self.block) if self._device == "cpu" else [value.numpy() for value in self._values]

    def _write(self, slot: int, rows: CacheRows) -> None:
        self._store([(np.s_[slot : slot + 1, :, : value.shape[2]], value) for value in rows])

    def _store(self, parts: Sequence[tuple[Any, npt.NDArray[Any]]]) -> None:
        """Write a part of each tensor's cache."""
        for (place, part), whole, value in zip(parts, self._host(), self._values, strict=True):
            whole[place] = part
            if self._device != "cpu":
                value.update_inplace(whole)


class _View:
    """Some neighbouring slots as the graph's batch, bound once: cache, logits, and ids that are no visual tokens'."""

    def __init__(self, owner: BlockSession, first: int, count: int) -> None:
        info = owner._info
        self._owner, self._first, self._count = owner, first, count
        self._names = owner._group.cache_tensors
        self._binding = owner._session.io_binding()
        self.logits = np.empty((count, info.vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self.logits))
        # What lies behind bound values must live as long as they do.
        self._held: list[Any] = []
        self._new = owner.block[:0, :0, :, :0]
        for name, value in zip(self._names, owner._values, strict=True):
            shape = (count, *value.shape()[1:])
            kind = CACHE_TYPES[info.cache_dtype]
            address = value.data_ptr() + first * math.prod(shape[1:]) * np.dtype(kind).itemsize
            place = owner._device, 0, kind, shape, address
            self._binding.bind_input(f"past_key_values.{name}", *place)
            if not owner._facts.hands_out_rows:
                self._binding.bind_output(f"present.{name}", *place)
        nothing = np.zeros((count, 1, int(info.visual.shape[2])), info.visual.dtype)
        self.bind_visual(ort.OrtValue.ortvalue_from_numpy(nothing, owner._device))

    def bind_visual(self, visual: DeviceTensor) -> None:
        """Let ids refer to ``visual``."""
        self._visual = visual
        self._binding.bind_ortvalue_input("visual_tokens", visual)

    def run(self, inputs: StepInputs, seq: int, lengths: Ints, stepped: Sequence[int]) -> None:
        """Run a step of ``seq`` ids per sequence; new rows that the graph hands out go where ``stepped`` end."""
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in inputs.values()]
        for name, value in zip(inputs, values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        self._held = values
        hands_out = self._owner._facts.hands_out_rows
        if hands_out and self._new.shape[3:4] != (seq,):
            self._bind_new(seq)
        run_bound(self._owner._session, self._binding)
        if hands_out:
            for slot in stepped:
                begin = int(lengths[slot])
                self._owner.block[:, slot, :, begin : begin + seq] = self._new[:, slot - self._first]

    def _bind_new(self, seq: int) -> None:
        tensors, _, heads, _, width = self._owner.block.shape
        self._new = np.zeros((tensors, self._count, heads, seq, width), self._owner.block.dtype)
        self._new_values = [ort.OrtValue.ortvalue_from_numpy(part) for part in self._new]
        for name, value in zip(self._names, self._new_values, strict=True):
            self._binding.bind_ortvalue_output(f"new_key_values.{name}", value)
