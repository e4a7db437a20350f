"""The language model in dialect ``portable``: a step takes past keys and values and returns them longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.manifest import LanguageInfo, LayerGroup
from divprune_edge.runtime.backends.binding import Binding
from divprune_edge.runtime.backends.memory import DeviceMemory, DeviceRows, TensorSpan
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


@dataclass
class _Batch:
    """Sequences side by side in one growing cache, padded on the left where one has fewer rows than another.

    Attributes:
        slots: of its sequences, in order; -1 is one that has left.
        cache: key and value of each layer, [sequences * kv_heads, columns, head_dim].
        real: bool [sequences, columns]; which columns are no padding.
        visual: what the ids refer to, [sequences, K, D].
    """

    slots: list[int]
    cache: list[TensorSpan]
    real: npt.NDArray[np.bool_]
    visual: DeviceTensor


class GrowingSession(SlotTable):
    """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`.

    A sequence is prefilled in a batch of its own. Sequences that are stepped together are put into one batch for that,
    which copies their caches on the device: they should begin together, and those that end are left behind once they
    are half of it.
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
        self._past = [f"past_key_values.{name}" for name in group.cache_tensors]
        self._present = [f"present.{name}" for name in group.cache_tensors]
        self._batches: dict[int, _Batch] = {}

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        slot = self.take(visual)
        if rows:
            assert isinstance(rows, DeviceRows)
            self._batches[slot] = self._alone(slot, rows)
            self.lengths[slot] = rows.length
        else:
            self._batches[slot] = self._alone(slot, self._new_rows(0))
        return slot

    def remove(self, slot: int) -> None:
        """Leave the batch, whose cache goes with its last sequence."""
        self._leave(slot)
        del self._batches[slot]
        super().remove(slot)

    def prefill(self, slot: int, ids: Ints, positions: Ints) -> Prediction:
        """Run one step on a batch of this sequence alone."""
        batch = self._batches[slot]
        if len(batch.slots) > 1:
            batch = self._part(slot, self.length(slot))
        batch.visual = self.visual[slot]
        return self._run(batch, ids, positions, np.ones(ids.shape, np.bool_)).read(0)

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """Run one step on one batch; whoever is in it and not asked for is fed padding."""
        for slot in ids:
            self.check_room(slot, 1)
        batch = self._together(list(ids))
        count = len(batch.slots)
        row, places = (np.zeros((count, 1), np.int64) for _ in range(2))
        real = np.zeros((count, 1), np.bool_)
        for at, slot in enumerate(batch.slots):
            if slot in ids:
                row[at], real[at] = ids[slot], True
                places[at] = self.lengths[slot] if positions is None else positions[slot]
        outputs = self._run(batch, row, places, real)
        self.lengths[list(ids)] += 1
        return {slot: outputs.read(at) for at, slot in enumerate(batch.slots) if slot in ids}

    def order(self, stepped: Sequence[int]) -> tuple[int, ...]:
        """Return for which slots the rows of the next step of these are: those of their batch, -1 for one that left."""
        return tuple(self._together(stepped).slots)

    def truncate(self, slot: int, length: int) -> None:
        """Cut the cache's tensors."""
        if length < self.length(slot):
            self._part(slot, length)
            super().truncate(slot, length)

    def rows(self, slot: int, length: int) -> DeviceRows:
        """Copy on the device."""
        columns, kept = self._columns(slot)[:length], self._new_rows(length)
        for i, source in enumerate(self._spans(slot)):
            self._memory.copy(source, columns, kept.span(i))
        return kept

    def _new_rows(self, length: int) -> DeviceRows:
        info, heads = self._info, (self._info.kv_heads, length, self._info.head_dim)
        return DeviceRows.room(self._memory, info.cache_dtype, len(self._past), heads)

    def _spans(self, slot: int) -> list[TensorSpan]:
        """Return where a sequence's part of each tensor of its batch lies."""
        batch, heads = self._batches[slot], self._info.kv_heads
        return [span.part(batch.slots.index(slot) * heads, heads) for span in batch.cache]

    def _columns(self, slot: int) -> npt.NDArray[np.int64]:
        """Return which columns of its batch are a sequence's rows."""
        batch = self._batches[slot]
        return np.flatnonzero(batch.real[batch.slots.index(slot)])

    def _alone(self, slot: int, rows: DeviceRows) -> _Batch:
        cache = [rows.span(i) for i in range(len(rows))]  # a step does not write to them
        return _Batch([slot], cache, np.ones((1, rows.length), np.bool_), self.visual[slot])

    def _leave(self, slot: int) -> None:
        slots = self._batches[slot].slots
        slots[slots.index(slot)] = -1

    def _part(self, slot: int, length: int) -> _Batch:
        """Take a sequence's first rows out of its batch, into one of its own."""
        rows = self.rows(slot, length)
        self._leave(slot)
        self._batches[slot] = self._alone(slot, rows)
        return self._batches[slot]

    def _together(self, slots: Sequence[int]) -> _Batch:
        """Return a batch with all of these, of which they are more than half."""
        batch, info = self._batches[slots[0]], self._info
        if all(self._batches[slot] is batch for slot in slots) and 2 * len(slots) > len(batch.slots):
            return batch
        if len(slots) == 1:
            return self._part(slots[0], self.length(slots[0]))
        columns = {slot: self._columns(slot) for slot in slots}
        longest = max(found.size for found in columns.values())
        shape = len(slots) * info.kv_heads, longest, info.head_dim
        cache = [
            TensorSpan(self._memory.empty(shape, info.cache_dtype), info.cache_dtype, shape)
            for _ in self._past
        ]
        for at, slot in enumerate(slots):
            for source, whole in zip(self._spans(slot), cache, strict=True):
                target = whole.part(at * info.kv_heads, info.kv_heads)
                self._memory.copy(source, columns[slot], target, longest - columns[slot].size)
        real = np.arange(longest) >= longest - np.array([found.size for found in columns.values()])[:, None]
        # Decoded ids refer to no visual token.
        visual = None
        if info.takes_ids:
            nothing = np.zeros((len(slots), 1, int(info.visual.shape[2])), info.visual.dtype)
            visual = self._memory.upload(nothing)
        for slot in slots:
            self._leave(slot)
        joined = _Batch(list(slots), cache, real, visual)
        self._batches.update(dict.fromkeys(slots, joined))
        return joined

    def _run(self, batch: _Batch, ids: Ints, positions: Ints, real: npt.NDArray[np.bool_]) -> Outputs:
        batch.real = np.concatenate((batch.real, real), axis=1)
        binding = Binding(self._session, self._memory)
        step = {
            "input_ids": ids,
            "logits_index": np.full(ids.shape[0], ids.shape[1] - 1, np.int64),
            "attention_mask": batch.real,
            "position_ids": along(positions, self._axes),
        }
        binding.arrays({name: value for name, value in step.items() if name in self._fed})
        if self._info.takes_ids:
            binding.input("visual_tokens", batch.visual)
        binding.fed(self.link.fed)
        info, count = self._info, ids.shape[0]
        for name, span in zip(self._past, batch.cache, strict=True):
            binding.place(span, (count, info.kv_heads, *span.shape[1:]), source=name)
        outputs = Outputs(binding, self._memory, info, count)
        found = binding.make([*self._present, *self._handed])
        self.link.handed = {name: found[name] for name in self._handed}
        self.link.order = tuple(batch.slots)
        shape = count * info.kv_heads, batch.real.shape[1], info.head_dim
        batch.cache = [TensorSpan(found[name], info.cache_dtype, shape) for name in self._present]
        return outputs
