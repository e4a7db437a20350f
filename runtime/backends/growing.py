"""The language model in dialect ``portable``: a step takes past keys and values and returns them longer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.manifest import LanguageInfo, LayerGroup
from divprune_edge.runtime.backends.binding import CACHE_TYPES, Binding
from divprune_edge.runtime.backends.session import CacheRows, DeviceTensor, Ints, Logits, SlotTable, pieces


@dataclass
class _Batch:
    """Sequences side by side in one growing cache, padded on the left where one has fewer rows than another.

    Attributes:
        slots: of its sequences, in order; -1 is one that has left.
        cache: key and value of each layer, [sequences, kv_heads, columns, head_dim].
        real: bool [sequences, columns]; which columns are no padding.
        visual: what the ids refer to, [sequences, K, D].
    """

    slots: list[int]
    cache: list[ort.OrtValue]
    real: npt.NDArray[np.bool_]
    visual: DeviceTensor


class GrowingSession(SlotTable):
    """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`.

    A sequence is prefilled in a batch of its own. Sequences that are stepped together are put into one batch for that,
    which copies their caches through the host: they should begin together, and those that end are left behind once they
    are half of it.
    """

    def __init__(
        self, session: ort.InferenceSession, device: str, info: LanguageInfo, group: LayerGroup, slots: int
    ) -> None:
        super().__init__(info, group, slots)
        self._session, self._device = session, device
        self._past = [f"past_key_values.{name}" for name in group.cache_tensors]
        self._present = [f"present.{name}" for name in group.cache_tensors]
        self._batches: dict[int, _Batch] = {}

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        slot, info = self.take(visual), self._info
        if rows:
            self.lengths[slot] = rows[0].shape[2]
        empty = np.zeros((1, info.kv_heads, 0, info.head_dim), CACHE_TYPES[info.cache_dtype])
        self._batches[slot] = self._alone(slot, rows or [empty] * len(self._past))
        return slot

    def remove(self, slot: int) -> None:
        """Leave the batch, whose cache goes with its last sequence."""
        self._leave(slot)
        del self._batches[slot]
        super().remove(slot)

    def extend(
        self, slot: int, ids: Sequence[int], positions: Sequence[int] | None = None, chunk: int | None = None
    ) -> Logits:
        """Run one step per chunk on a batch of this sequence alone."""
        self.check_room(slot, len(ids))
        batch = self._batches[slot]
        if len(batch.slots) > 1:
            batch = self._part(slot, self.length(slot))
        batch.visual = self.visual[slot]
        for part, places in pieces(ids, positions, self.length(slot), chunk):
            logits = self._run(batch, part, places, np.ones(part.shape, np.bool_))
            self.lengths[slot] += part.shape[1]
        last: Logits = logits[0]
        return last

    def step(self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None) -> dict[int, Logits]:
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
        logits = self._run(batch, row, places, real)
        self.lengths[list(ids)] += 1
        return {slot: logits[at] for at, slot in enumerate(batch.slots) if slot in ids}

    def truncate(self, slot: int, length: int) -> None:
        """Cut the cache's tensors."""
        if length < self.length(slot):
            self._part(slot, length)
            super().truncate(slot, length)

    def rows(self, slot: int, length: int) -> CacheRows:
        """Copy through the host."""
        batch = self._batches[slot]
        at = batch.slots.index(slot)
        columns = np.flatnonzero(batch.real[at])[:length]
        return tuple(np.array(value.numpy()[at : at + 1][:, :, columns]) for value in batch.cache)

    def _alone(self, slot: int, rows: Sequence[npt.NDArray[Any]]) -> _Batch:
        real = np.ones((1, rows[0].shape[2]), np.bool_)
        return _Batch([slot], [self._to_device(value) for value in rows], real, self.visual[slot])

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
        batch = self._batches[slots[0]]
        if all(self._batches[slot] is batch for slot in slots) and 2 * len(slots) > len(batch.slots):
            return batch
        if len(slots) == 1:
            return self._part(slots[0], self.length(slots[0]))
        held = [self.rows(slot, self.length(slot)) for slot in slots]
        lengths = [rows[0].shape[2] for rows in held]
        longest = max(lengths)
        cache = []
        for i, first in enumerate(held[0]):
            whole = np.zeros((len(slots), first.shape[1], longest, first.shape[3]), first.dtype)
            for at, rows in enumerate(held):
                whole[at, :, longest - lengths[at] :] = rows[i][0]
            cache.append(self._to_device(whole))
        real = np.arange(longest) >= longest - np.array(lengths)[:, None]
        # Decoded ids refer to no visual token.
        visual = self._info.visual
        nothing = self._to_device(np.zeros((len(slots), 1, int(visual.shape[2])), visual.dtype))
        for slot in slots:
            self._leave(slot)
        joined = _Batch(list(slots), cache, real, nothing)
        self._batches.update(dict.fromkeys(slots, joined))
        return joined

    def _run(self, batch: _Batch, ids: Ints, positions: Ints, real: npt.NDArray[np.bool_]) -> Logits:
        batch.real = np.concatenate((batch.real, real), axis=1)
        binding = Binding(self._session, self._device)
        binding.array("input_ids", ids)
        binding.array("logits_index", np.full(ids.shape[0], ids.shape[1] - 1, np.int64))
        binding.array("attention_mask", batch.real)
        binding.array("position_ids", positions)
        binding.input("visual_tokens", batch.visual)
        for name, value in zip(self._past, batch.cache, strict=True):
            binding.input(name, value)
        outputs = binding.run(self._present, host=["logits"])
        batch.cache = [outputs[name] for name in self._present]
        logits: Logits = outputs["logits"].numpy()
        return logits

    def _to_device(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)
