"""The language model on TensorRT: a KV cache of fixed size, prefill by a profile of its own, decode as one CUDA graph.

Everything that a sequence needs lies in a :class:`~divprune_edge.runtime.backends.tensorrt_slot.Slot`: it is allocated
once, and the next sequence takes over the slot of one that is gone.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo, TensorInfo
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.runtime.backends.backend import CacheRows
from divprune_edge.runtime.backends.steps import STEPS, check_room, pieces
from divprune_edge.runtime.backends.tensorrt_slot import PAST, VISUAL, Slot
from divprune_edge.runtime.engines.device import Device, Memory, Plan, Shape, aligned
from divprune_edge.runtime.engines.pool import Tensor
from divprune_edge.runtime.engines.profiles import DECODE, PREFILL


@dataclass(frozen=True)
class Place:
    """Where an input of a step lies in the block that is copied to the device."""

    offset: int
    shape: Shape
    dtype: np.dtype[Any]


class TensorRtLanguage:
    """The engine of the language model and the slots of its sequences.

    Args:
        device: where it runs.
        plan: the engine, with profiles for prefill and decode.
        info: of the manifest; dialect ``static`` or ``decomposed``.
    """

    def __init__(self, device: Device, plan: Plan, info: LanguageInfo) -> None:
        assert info.capacity is not None
        self.device, self.plan, self.info = device, plan, info
        self.capacity = info.capacity
        self.step = STEPS[info.dialect]
        self.prefill = min(PREFILL, plan.profiles - 1)
        self.longest = plan.limits("input_ids", self.prefill)[1][1]
        self.tensors = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        self.cache_dtype = np.dtype(info.cache_dtype)
        self.row_bytes = info.head_dim * self.cache_dtype.itemsize
        self.cache_stride = aligned(info.kv_heads * self.capacity * self.row_bytes)
        self.in_place = not DIALECTS[info.dialect].hands_out_rows
        # TensorRT may choose kernels that a CUDA graph cannot hold; whether it did is known at the first capture.
        self.capturable = True
        self._slots: list[Slot] = []
        self._free: list[Slot] = []

    def slot_bytes(self) -> int:
        """Return the device memory of one slot: the cache, new rows of a longest prefill, inputs, logits."""
        rows = 0 if self.in_place else len(self.tensors) * self.rows_stride(self.longest)
        return self.cache_bytes + rows + self.places(self.longest)[1] + aligned(4 * self.info.vocabulary)

    @property
    def cache_bytes(self) -> int:
        """Device memory of one sequence's KV cache."""
        return len(self.tensors) * self.cache_stride

    def rows_stride(self, count: int) -> int:
        """Return the bytes between the new rows of two tensors in a step of ``count`` ids."""
        return aligned(self.info.kv_heads * count * self.row_bytes)

    def places(self, count: int) -> tuple[dict[str, Place], int]:
        """Return where the inputs of a step of ``count`` ids lie, and the bytes that they take."""
        found, size = {}, 0
        for tensor in self.info.inputs:
            if tensor.name != VISUAL and not tensor.name.startswith(PAST):
                place = Place(size, _shape(tensor, count), np.dtype(tensor.dtype))
                found[tensor.name] = place
                size += aligned(math.prod(place.shape) * place.dtype.itemsize)
        return found, size

    def reserve(self, visual: Tensor, scratch: Memory) -> None:
        """Have a slot ready, and its decode step captured, for a sequence over ``visual``.

        Args:
            visual: the visual tokens of the next sequence: their address and shape count.
            scratch: memory for activations.

        Raises:
            UserError: the engine was not built for so many visual tokens.
        """
        self._check_kept(visual)
        self._scratch = scratch
        if self._slots and not self._free:
            return  # sequences are under way: whether there will be one more, nobody knows
        slot = self._take()
        try:
            slot.bind(visual)
            slot.warm_up()
        finally:
            self._free.append(slot)

    def session(self, visual: Tensor, rows: CacheRows | None) -> TensorRtSession:
        """Begin a sequence in a slot that is free, else in a new one.

        Raises:
            UserError: the engine was not built for so many visual tokens, or there is no memory for one more slot.
        """
        self._check_kept(visual)
        slot = self._take()
        try:
            session = TensorRtSession(self, slot, visual, rows)
        except BaseException:
            self._free.append(slot)
            raise
        weakref.finalize(session, self._free.append, slot).atexit = False
        return session

    def _take(self) -> Slot:
        if not self._free:
            self._slots.append(Slot(self, self._scratch))
            self._free.append(self._slots[-1])
        return self._free.pop()

    def _check_kept(self, visual: Tensor) -> None:
        kept = visual.shape[1]
        least, most = (shape[1] for shape in self.plan.limits(VISUAL, DECODE))
        if not least <= kept <= most:
            span = f"{least}" if least == most else f"{least} to {most}"
            raise UserError(
                f"There are {kept} visual tokens, but the language model's engine was built for {span}: build it "
                "for this selector too, with 'python -m runtime build BUNDLE --selector NAME,NAME'.",
                code="engines-for-other-keep",
            )


class TensorRtSession:
    """One sequence; see :class:`~divprune_edge.runtime.backends.backend.LanguageSession`."""

    def __init__(self, model: TensorRtLanguage, slot: Slot, visual: Tensor, rows: CacheRows | None) -> None:
        self._model, self._slot = model, slot
        # The slot's contexts read it as long as this sequence lives.
        self._visual = visual
        slot.bind(visual)
        self._length = rows[0].shape[2] if rows else 0
        if rows and not (slot.prefix is rows and slot.intact >= self._length):
            self._write(rows)

    @property
    def length(self) -> int:
        """Number of positions in the KV cache."""
        return self._length

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Run a step per chunk; none is longer than what the engine was built for."""
        model, slot = self._model, self._slot
        check_room(model.info, self._length, len(ids))
        slot.intact = min(slot.intact, self._length)
        for piece in pieces(ids, min(chunk or model.longest, model.longest)):
            inputs = model.step(piece, self._length, model.capacity)
            if piece.shape[1] == 1:
                slot.decode(inputs)
            else:
                slot.prefill(inputs, piece.shape[1])
            self._length += piece.shape[1]
        return slot.logits

    def truncate(self, length: int) -> None:
        """Rows from ``length`` on are written over."""
        self._length = min(self._length, length)

    def rows(self, length: int) -> CacheRows:
        """Copy to the host; the slot remembers that its cache begins with them."""
        model, slot = self._model, self._slot
        shape = (1, model.info.kv_heads, length, model.info.head_dim)
        found = tuple(np.empty(shape, model.cache_dtype) for _ in model.tensors)
        if length:
            piece, whole = length * model.row_bytes, model.capacity * model.row_bytes
            for i, array in enumerate(found):
                source = slot.cache.address + i * model.cache_stride
                model.device.download_pieces(
                    array.ctypes.data, piece, source, whole, piece, model.info.kv_heads
                )
            model.device.synchronize()
        slot.prefix, slot.intact = found, length
        return found

    def _write(self, rows: CacheRows) -> None:
        model, slot = self._model, self._slot
        piece, whole = self._length * model.row_bytes, model.capacity * model.row_bytes
        held = [np.ascontiguousarray(array) for array in rows]
        slot.intact = 0
        if piece:
            for i, array in enumerate(held):
                to = slot.cache.address + i * model.cache_stride
                model.device.upload_pieces(to, whole, array.ctypes.data, piece, piece, model.info.kv_heads)
            model.device.synchronize()
        slot.prefix, slot.intact = rows, self._length


def _shape(tensor: TensorInfo, count: int) -> Shape:
    sizes = {"batch": 1, "seq": count}
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
