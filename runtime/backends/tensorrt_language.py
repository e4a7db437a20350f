"""The language model on TensorRT: a KV cache of fixed size, prefill by a profile of its own, decode as one CUDA graph.

Everything that a session needs lies in its :class:`~divprune_edge.runtime.backends.tensorrt_slots.Slots`: they are
allocated once, and the next session takes over those of one that is gone.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo, LayerGroup
from divprune_edge.models.profiles import HIDDEN, check_slots
from divprune_edge.models.steps import StepInputs
from divprune_edge.runtime.backends.session import (
    CacheRows,
    Ints,
    Prediction,
    SlotTable,
)
from divprune_edge.runtime.backends.tensorrt_slots import Slots
from divprune_edge.runtime.backends.tensorrt_steps import ROWS, VISUAL, LanguageSteps
from divprune_edge.runtime.engines.device import Device, Memory, Plan
from divprune_edge.runtime.engines.pool import Tensor


class TensorRtLanguage(LanguageSteps):
    """The engine of the language model and the memory of its sessions.

    Args:
        device: where it runs.
        plan: the engine, with profiles for prefill and decode.
        info: of the manifest; dialect ``static`` or ``decomposed``.
        group: the engine's layers.
        images: of a prompt that the engine was built for.
    """

    def __init__(
        self, device: Device, plan: Plan, info: LanguageInfo, group: LayerGroup, images: int = 1
    ) -> None:
        super().__init__(device, plan, info, group)
        self.images = images
        self._free: list[Slots] = []
        self._made = 0

    def reserve(self, scratch: Memory) -> None:
        """Have the memory of one sequence ready, and its decode step captured; ``scratch`` is for activations."""
        self._scratch = scratch
        if self._made and not self._free:
            return  # sequences are under way: whether there will be one more, nobody knows
        slots = self._take(1)
        try:
            slots.warm_up()
        finally:
            self._free.append(slots)

    def session(self, slots: int) -> TensorRtSession:
        """Return so many slots: those of a session that is gone, else new ones.

        Raises:
            UserError: the engine was not built for so many, or there is no memory for them.
        """
        if slots > self.most_slots:
            raise UserError(
                f"{slots} sequences were asked for at a time, but the language model's engine was built for "
                f"{self.most_slots}: ask one by one, or build it "
                f"with 'python -m runtime build BUNDLE --slots {slots}'.",
                code="engine-slots",
            )
        memory = self._take(slots)
        session = TensorRtSession(self, memory)
        weakref.finalize(session, self._free.append, memory).atexit = False
        return session

    def check_kept(self, kept: int) -> None:
        """Check that the engine takes an image of which so many visual tokens are kept.

        Raises:
            UserError: it was not built for so many.
        """
        _, most = self._visual_limits
        if kept > most:
            raise UserError(
                f"There are {kept} visual tokens, but the language model's engine was built for up to {most}: build it "
                "for this selector too, with 'python -m runtime build BUNDLE --selector NAME,NAME'.",
                code="engines-for-other-keep",
            )

    def check_visual(self, visual: Tensor) -> None:
        """Check that the engine takes the visual tokens of a prompt, [1, K, D].

        Raises:
            UserError: it was not built for so many, or, before it could be, for prompts without an image.
        """
        rows, (least, most) = visual.shape[1], self._visual_limits
        if rows > most:
            images = -(-rows * self.images // most)
            raise UserError(
                f"The images of the prompt take {rows} visual tokens, but the language model's engine was built for "
                f"{most} (--images {self.images}): ask about fewer, or build it with "
                f"'python -m runtime build BUNDLE --images {images}'.",
                code="engine-images",
            )
        if rows < least:
            raise UserError(
                f"The prompt has no image, but the language model's engine is an older one, which takes {least} visual "
                "tokens or more: build it again with 'python -m runtime build BUNDLE --force'.",
                code="engine-images",
            )

    @property
    def _visual_limits(self) -> tuple[int, int]:
        least, most = (shape[1] for shape in self.plan.limits(VISUAL, self.prefill))
        return least, most

    def _take(self, slots: int) -> Slots:
        for at, memory in enumerate(self._free):
            if memory.count == slots:
                return self._free.pop(at)
        check_slots(self.info, self.capacity, slots)
        self._made += 1
        return Slots(self, slots, self._scratch)


class TensorRtSession(SlotTable):
    """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`."""

    def __init__(self, model: TensorRtLanguage, memory: Slots) -> None:
        super().__init__(model.info, model.group, memory.count)
        self._model, self._memory = model, memory

    def add(self, visual: Tensor, rows: CacheRows | None = None) -> int:
        """Take a slot; rows that its cache still begins with are not copied again."""
        if self._info.takes_ids:
            self._model.check_visual(visual)
        slot, memory = self.take(visual), self._memory
        length = rows[0].shape[2] if rows else 0
        if rows and not (memory.prefix[slot] is rows and memory.intact[slot] >= length):
            try:
                self._write(slot, rows)
            except BaseException:
                self.remove(slot)
                raise
        self.lengths[slot] = length
        return slot

    def show(self, slot: int, visual: Tensor) -> None:
        """Prefill is bound to the visual tokens anew for each step."""
        self._model.check_visual(visual)
        super().show(slot, visual)

    def prefill(self, slot: int, ids: Ints, positions: Ints) -> Prediction:
        """Run a step on the slot's piece of the cache."""
        memory, rows, seq = self._memory, self.length(slot), ids.shape[1]
        memory.intact[slot] = min(memory.intact[slot], rows)
        visual: Tensor | None = self.visual[slot]
        where = None if visual is None else (visual.address, visual.shape)
        asked = self._enter()
        step = self._model.step(ids, positions, self.lengths[slot : slot + 1])
        memory.prefill(slot, where, {**step, **asked}, seq, rows)
        self._leave(seq, 1, memory.scores)
        return memory.read(0)

    @property
    def most(self) -> int:
        """Ids that one run takes."""
        return self._model.longest

    def order(self, stepped: Sequence[int]) -> tuple[int, ...]:
        """Return for which slots the rows of the next step of these are: all."""
        return tuple(range(self.slots))

    def _enter(self) -> StepInputs:
        """Put the hidden states that the graph before handed on where this one reads; return what a method asks."""
        fed = dict(self.link.fed)
        hidden: Tensor | None = fed.pop(HIDDEN, None)
        if hidden is not None:
            self._memory.enter(hidden)
        return fed

    def _leave(self, count: int, batch: int, scores: Mapping[str, Any]) -> None:
        """Say what the next graph of the chain gets."""
        self.link.handed = {**scores}
        if self._model.handed is not None:
            self.link.handed["hidden_out"] = self._memory.handed_on(count, batch)
        self.link.order = tuple(range(self.slots))

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """Run one step on all slots; what it writes for the others lies on the last row, or nowhere."""
        model, memory, lengths = self._model, self._memory, self.lengths
        row, places = (np.zeros((memory.count, 1), np.int64) for _ in range(2))
        held, rows = (np.full(memory.count, model.capacity - beside) for beside in (1, 0))
        for slot, token in ids.items():
            self.check_room(slot, 1)
            held[slot] = rows[slot] = lengths[slot]
            row[slot], places[slot] = token, lengths[slot] if positions is None else positions[slot]
        memory.intact = [min(intact, int(held[slot])) for slot, intact in enumerate(memory.intact)]
        memory.decode({**self._enter(), **model.step(row, places, held), ROWS: rows})
        self._leave(1, memory.count, {})
        lengths[list(ids)] += 1
        return {slot: memory.read(slot) for slot in ids}

    def rows(self, slot: int, length: int) -> CacheRows:
        """Copy to the host; the slot remembers that its cache begins with them."""
        model, memory = self._model, self._memory
        shape = (1, model.info.kv_heads, length, model.info.head_dim)
        found = tuple(np.empty(shape, model.cache_dtype) for _ in model.tensors)
        if length:
            piece, whole = length * model.row_bytes, model.capacity * model.row_bytes
            for i, array in enumerate(found):
                source = memory.address(slot, i)
                model.device.download_pieces(
                    array.ctypes.data, piece, source, whole, piece, model.info.kv_heads
                )
            model.device.synchronize()
        memory.prefix[slot], memory.intact[slot] = found, length
        return found

    def _write(self, slot: int, rows: CacheRows) -> None:
        model, memory = self._model, self._memory
        length = rows[0].shape[2]
        piece, whole = length * model.row_bytes, model.capacity * model.row_bytes
        held = [np.ascontiguousarray(array) for array in rows]
        memory.intact[slot] = 0
        if piece:
            for i, array in enumerate(held):
                to = memory.address(slot, i)
                model.device.upload_pieces(to, whole, array.ctypes.data, piece, piece, model.info.kv_heads)
            model.device.synchronize()
        memory.prefix[slot], memory.intact[slot] = rows, length
