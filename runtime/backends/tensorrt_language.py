"""The language model on TensorRT: a KV cache of fixed size, prefill by a profile of its own, decode as one CUDA graph.

Everything that a sequence needs lies in a :class:`Slot`: it is allocated once, and the next sequence takes over the
slot of one that is gone. What the host feeds per step travels in one copy, so a decode step on the host is: write
some hundred bytes, launch one graph, wait, read the logits.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.manifest import LanguageInfo, TensorInfo
from divprune_edge.plugins.abi import Append
from divprune_edge.runtime.backends.base import CacheRows
from divprune_edge.runtime.backends.steps import STEPS, StepInputs, check_room, pieces
from divprune_edge.runtime.engines.device import Context, Device, Graph, Memory, Plan, Shape, aligned
from divprune_edge.runtime.engines.pool import Tensor
from divprune_edge.runtime.engines.profiles import DECODE, PREFILL

_log = logging.getLogger("divprune_edge")
_VISUAL, _LOGITS, _PAST = "visual_tokens", "logits", "past_key_values."


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
        self.longest = plan.limits("input_ids", PREFILL)[1][1]
        self.tensors = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        self.cache_dtype = np.dtype(info.cache_dtype)
        self.row_bytes = info.head_dim * self.cache_dtype.itemsize
        self.cache_stride = aligned(info.kv_heads * self.capacity * self.row_bytes)
        self.in_place = info.dialect == "static"
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
            if tensor.name != _VISUAL and not tensor.name.startswith(_PAST):
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
        least, most = (shape[1] for shape in self.plan.limits(_VISUAL, DECODE))
        if not least <= kept <= most:
            span = f"{least}" if least == most else f"{least} to {most}"
            raise UserError(
                f"There are {kept} visual tokens, but the language model's engine was built for {span}: build it "
                "for this selector too, with 'python -m runtime build BUNDLE --selector NAME,NAME'."
            )


class Slot:
    """The memory of one sequence, the contexts that are bound to it, and the graph that was captured of them."""

    def __init__(self, model: TensorRtLanguage, scratch: Memory) -> None:
        device = model.device
        self._model, self._device = model, device
        self.cache = device.allocate(model.cache_bytes)
        # Rows beyond the live length are masked, but 0 times what an allocation holds may not be a number.
        device.clear(self.cache.address, self.cache.nbytes)
        rows = 0 if model.in_place else len(model.tensors) * model.rows_stride(model.longest)
        self._new_rows = device.allocate(rows) if rows else None
        size = model.places(model.longest)[1]
        self._inputs, self._host_inputs = device.allocate(size), device.pinned(size)
        count = model.info.vocabulary
        self._logits, self._host_logits = device.allocate(4 * count), device.pinned(4 * count)
        self.logits = self._host_logits.array[: 4 * count].view(np.float32)
        self._prefill, self._decode = (model.plan.context(p, scratch) for p in (PREFILL, DECODE))
        for context in (self._prefill, self._decode):
            self._bind_cache(context)
        self._decode_views = self._bind_step(self._decode, 1)
        self._decode_bytes = model.places(1)[1]
        self._visual: tuple[int, Shape] | None = None
        self._graph: Graph | None = None
        self._warm = False
        # The cache begins with so many rows of these.
        self.prefix: CacheRows | None = None
        self.intact = 0

    def bind(self, visual: Tensor) -> None:
        """Let both contexts read ``visual``; a graph of other visual tokens is of no use any more."""
        wanted = (visual.address, visual.shape)
        if self._visual == wanted:
            return
        # A context must not change under a graph that was captured of it.
        self._graph, self._warm, self._visual = None, False, None
        for context in (self._prefill, self._decode):
            context.set_shape(_VISUAL, visual.shape)
            context.set_address(_VISUAL, visual.address)
        self._visual = wanted

    def warm_up(self) -> None:
        """Run both kinds of steps on nothing and capture decode's, so that no question pays for that."""
        if self._graph is not None:
            return
        model = self._model
        self.intact = 0
        nothing, two = (model.step(np.zeros((1, n), np.int64), 0, model.capacity) for n in (1, 2))
        if model.longest > 1:
            self.prefill(two, 2)
        self.decode(nothing)
        self.decode(nothing)

    def decode(self, inputs: StepInputs) -> None:
        """Run a step of one id; from the second on, one launch of a graph where the engine allows it."""
        for name, view in self._decode_views.items():
            view[...] = inputs[name]
        if self._graph is not None:
            self._device.launch(self._graph)
        elif self._warm and self._model.capturable:
            self._capture()
        else:
            # TensorRT sets a context up in its first run, which cannot be captured.
            self._decode_step()
            self._warm = True
        self._device.synchronize()

    def prefill(self, inputs: StepInputs, count: int) -> None:
        """Run a step of ``count`` ids."""
        for name, view in self._bind_step(self._prefill, count).items():
            view[...] = inputs[name]
        self._run(self._prefill, count, self._model.places(count)[1])
        self._device.synchronize()

    def _capture(self) -> None:
        """Record the step and do it; where it cannot be recorded, say so once and do it."""
        try:
            self._graph = self._device.capture(self._decode_step)
        except UserError:
            raise
        except DivpruneError as error:
            self._model.capturable = False
            _log.warning(
                "Decode steps are slower than they could be: the engine cannot be recorded as a CUDA graph (%s).",
                str(error).rstrip("."),
            )
            self._decode_step()
        else:
            self._device.launch(self._graph)

    def _decode_step(self) -> None:
        self._run(self._decode, 1, self._decode_bytes)

    def _run(self, context: Context, count: int, nbytes: int) -> None:
        """Ask for one step; all addresses are fixed, so a graph of it stays right."""
        self._device.upload(self._inputs.address, self._host_inputs.address, nbytes)
        context.enqueue()
        if self._new_rows is not None:
            model = self._model
            sizes = Append(
                len(model.tensors),
                model.info.kv_heads,
                count,
                model.capacity,
                model.row_bytes,
                0,
                model.cache_stride,
                model.rows_stride(count),
            )
            # One sequence without gaps: the first new position is the row to write.
            position = self._inputs.address + model.places(count)[0]["position_ids"].offset
            self._device.append_rows(sizes, self._new_rows.address, self.cache.address, position)
        self._device.download(self._host_logits.address, self._logits.address, self._logits.nbytes)

    def _bind_cache(self, context: Context) -> None:
        model, info = self._model, self._model.info
        shape = (1, info.kv_heads, model.capacity, info.head_dim)
        for i, name in enumerate(model.tensors):
            address = self.cache.address + i * model.cache_stride
            context.set_shape(f"{_PAST}{name}", shape)
            context.set_address(f"{_PAST}{name}", address)
            if model.in_place:
                context.set_address(f"present.{name}", address)
        context.set_address(_LOGITS, self._logits.address)

    def _bind_step(self, context: Context, count: int) -> dict[str, npt.NDArray[Any]]:
        """Bind what depends on the number of ids; return the places in host memory to write the inputs to."""
        model = self._model
        views = {}
        for name, place in model.places(count)[0].items():
            context.set_shape(name, place.shape)
            context.set_address(name, self._inputs.address + place.offset)
            views[name] = np.ndarray(place.shape, place.dtype, self._host_inputs.array, place.offset)
        if self._new_rows is not None:
            for i, name in enumerate(model.tensors):
                address = self._new_rows.address + i * model.rows_stride(count)
                context.set_address(f"new_key_values.{name}", address)
        return views


class TensorRtSession:
    """One sequence; see :class:`~divprune_edge.runtime.backends.base.LanguageSession`."""

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
