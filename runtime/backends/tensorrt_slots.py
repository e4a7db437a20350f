"""The memory of a session's slots on TensorRT, and its two kinds of steps.

What the host feeds per step travels in one copy, so a decode step on the host is: write some hundred bytes, launch one
graph, wait, read the logits, or the next id where the engine says it. Prefill is bound to the part of the cache that is
one slot's, decode to all of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.profiles import DECODE, HIDDEN
from divprune_edge.models.steps import StepInputs
from divprune_edge.plugins.abi import Append
from divprune_edge.runtime.backends.session import CacheRows, Prediction, best_of
from divprune_edge.runtime.backends.tensorrt_steps import PAST, ROWS, VISUAL, LanguageSteps
from divprune_edge.runtime.engines.device import Context, Graph, Memory
from divprune_edge.runtime.engines.pool import Tensor

_log = logging.getLogger("divprune_edge")
_LOGITS, _NEXT = "logits", "next_id"


class Slots:
    """The memory of ``count`` slots, the contexts that are bound to it, and the graph that was captured of decode."""

    def __init__(self, model: LanguageSteps, count: int, scratch: Memory) -> None:
        device = model.device
        self._model, self._device, self.count = model, device, count
        self.cache = device.allocate(model.cache_bytes(count))
        # Rows beyond the live length are masked, but 0 times what an allocation holds may not be a number.
        device.clear(self.cache.address, self.cache.nbytes)
        rows = model.new_rows_bytes(count)
        self._new_rows = device.allocate(rows) if rows else None
        size = model.input_bytes(count)
        self._inputs, self._host_inputs = device.allocate(size), device.pinned(size)
        size = 4 * count * model.info.vocabulary if model.info.gives_logits else 0
        self._logits = device.allocate(size) if size else None
        self._host_logits = device.pinned(size) if size else None
        self._between = self._hidden_states()
        self._scores = {name: device.allocate(model.score_bytes) for name in model.scores}
        self._host_scores = {name: device.pinned(model.score_bytes) for name in model.scores}
        self.scores: dict[str, npt.NDArray[np.float32]] = {}
        # Greedy decoding needs no more than these: where there are any, logits are copied when they are read.
        self._ids = device.allocate(8 * count) if model.info.says_next else None
        self._host_ids = device.pinned(8 * count) if self._ids else None
        self._on_host = False
        # What decode reads as visual tokens: the ids of a decode step refer to none.
        self._nothing = device.allocate(model.nothing_bytes(count)) if model.info.takes_ids else None
        if self._nothing is not None:
            device.clear(self._nothing.address, self._nothing.nbytes)
        self._prefill = model.plan.context(model.prefill, scratch, varying=True)
        self._decode = model.plan.context(DECODE, scratch)
        for context in (self._prefill, self._decode):
            if self._logits is not None:
                context.set_address(_LOGITS, self._logits.address)
            for name, memory in {**self._between, **self._scores}.items():
                context.set_address(name, memory.address)
            if self._ids is not None:
                context.set_address(_NEXT, self._ids.address)
        self._bind_cache(self._decode, 0, count)
        if self._nothing is not None:
            self._decode.set_shape(VISUAL, model.nothing_shape(count))
            self._decode.set_address(VISUAL, self._nothing.address)
        self._decode_views = self._bind_step(self._decode, 1, count)
        self._decode_bytes = model.places(1, count)[1]
        self._graph: Graph | None = None
        self._warm = False
        # The cache of each slot begins with so many rows of these.
        self.prefix: list[CacheRows | None] = [None] * count
        self.intact = [0] * count

    def address(self, slot: int, tensor: int) -> int:
        """Return where a slot's cache of one tensor lies."""
        return (
            self.cache.address + tensor * self._model.cache_stride(self.count) + slot * self._model.slot_bytes
        )

    def _hidden_states(self) -> dict[str, Memory]:
        """Return the places of hidden states between this graph and those of its chain before and behind it."""
        model, device = self._model, self._device
        places = {}
        for tensor in (model.hidden, model.handed):
            if tensor is not None:
                place = places[tensor.name] = device.allocate(model.hidden_bytes(tensor, self.count))
                device.clear(place.address, place.nbytes)
        return places

    def enter(self, hidden: Tensor) -> None:
        """Copy the hidden states that the next run reads to where it reads them."""
        self._device.copy(self._between[HIDDEN].address, hidden.address, hidden.nbytes)

    def handed_on(self, count: int, batch: int) -> Tensor:
        """Return the hidden states that the last run handed on, valid until the next one."""
        tensor = self._model.handed
        assert tensor is not None
        shape = (batch, count, int(tensor.shape[2]))
        return Tensor(self._between[tensor.name], shape, np.dtype(tensor.dtype))

    def warm_up(self) -> None:
        """Run both kinds of steps on nothing and capture decode's, so that no question pays for that."""
        if self._graph is not None:
            return
        model = self._model
        self.intact = [0] * self.count
        if model.longest > 1:
            nothing = np.zeros((1, 2), np.int64)
            inputs = model.step(nothing, nothing + np.arange(2), np.zeros(1, np.int64))
            nowhere = None if self._nothing is None else (self._nothing.address, model.nothing_shape(1))
            self.prefill(0, nowhere, inputs, 2, 0)
        row, idle = np.zeros((self.count, 1), np.int64), np.full(self.count, model.capacity - 1)
        inputs = {**model.step(row, row, idle), ROWS: np.full(self.count, model.capacity)}
        self.decode(inputs)
        self.decode(inputs)

    def decode(self, inputs: StepInputs) -> None:
        """Run a step of one id per slot; from the second on, one launch of a graph where the engine allows it."""
        for name, view in self._decode_views.items():
            view[...] = inputs.get(name, 0)
        if self._graph is not None:
            self._device.launch(self._graph)
        elif self._warm and self._model.capturable:
            self._capture()
        else:
            # TensorRT sets a context up in its first run, which cannot be captured.
            self._decode_step()
            self._warm = True
        self._device.synchronize()
        self._on_host = self._ids is None

    def read(self, at: int) -> Prediction:
        """Return what the last step says of its sequence ``at``."""
        best = None
        if self._host_ids is not None:
            ids = self._host_ids.array[: 8 * self.count].view(np.int64)
            best = best_of(int(ids[at]), self._model.info.vocabulary)
        return Prediction(best, partial(self._read_logits, at))

    def prefill(
        self,
        slot: int,
        visual: tuple[int, tuple[int, ...]] | None,
        inputs: StepInputs,
        count: int,
        row: int,
    ) -> None:
        """Run a step of ``count`` ids of one slot from ``row`` of its cache on; logits are those of slot 0.

        ``visual`` is the address and shape of its visual tokens.
        """
        context = self._prefill
        if visual is not None:
            context.set_shape(VISUAL, visual[1])
            context.set_address(VISUAL, visual[0])
        self._bind_cache(context, slot, 1)
        feed, asked = {**inputs, ROWS: np.array([row])}, self._sizes(inputs)
        for name, view in self._bind_step(context, count, 1, asked).items():
            view[...] = feed.get(name, 0)
        self._run(context, count, 1, slot, self._model.places(count, 1, asked)[1], asked)
        scored = asked.get("scored", 1)
        for name, memory in self._scores.items():
            self._device.download(self._host_scores[name].address, memory.address, 4 * scored)
        self._device.synchronize()
        self.scores = {
            name: host.array[: 4 * scored].view(np.float32).copy() for name, host in self._host_scores.items()
        }
        self._on_host = self._ids is None

    def _sizes(self, inputs: StepInputs) -> dict[str, int]:
        """Return the sizes of what a schedule's method is asked for."""
        found = {}
        for tensor in self._model.info.inputs:
            if len(tensor.shape) == 1 and isinstance(tensor.shape[0], str) and tensor.name in inputs:
                found[tensor.shape[0]] = len(inputs[tensor.name])
        found.pop("batch", None)
        return found

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
        self._run(self._decode, 1, self.count, 0, self._decode_bytes)

    def _run(
        self,
        context: Context,
        count: int,
        batch: int,
        first: int,
        nbytes: int,
        asked: Mapping[str, int] | None = None,
    ) -> None:
        """Ask for one step of ``batch`` slots from ``first`` on; addresses are fixed, so a graph of it stays right."""
        self._device.upload(self._inputs.address, self._host_inputs.address, nbytes)
        context.enqueue()
        if self._new_rows is not None:
            model, info = self._model, self._model.info
            sizes = Append(
                len(model.tensors),
                info.kv_heads,
                count,
                model.capacity,
                model.row_bytes,
                0,
                model.cache_stride(self.count),
                model.rows_stride(count, batch),
            )
            rows = self._inputs.address + model.places(count, batch, asked)[0][ROWS].offset
            for at in range(batch):
                new = self._new_rows.address + at * info.kv_heads * count * model.row_bytes
                self._device.append_rows(sizes, new, self.address(first + at, 0), rows + 8 * at)
        if self._ids is not None and self._host_ids is not None:
            self._device.download(self._host_ids.address, self._ids.address, 8 * batch)
        elif self._logits is not None:
            self._download_logits(batch)

    def _download_logits(self, batch: int) -> None:
        assert self._logits is not None and self._host_logits is not None
        nbytes = 4 * batch * self._model.info.vocabulary
        self._device.download(self._host_logits.address, self._logits.address, nbytes)

    def _read_logits(self, at: int) -> npt.NDArray[np.float32]:
        if not self._on_host:
            self._download_logits(self.count)
            self._device.synchronize()
            self._on_host = True
        assert self._host_logits is not None, "of a chain, the last graph gives them"
        vocabulary = self._model.info.vocabulary
        size = 4 * self.count * vocabulary
        row: npt.NDArray[np.float32] = (
            self._host_logits.array[:size].view(np.float32).reshape(-1, vocabulary)[at]
        )
        return row

    def _bind_cache(self, context: Context, first: int, batch: int) -> None:
        model, info = self._model, self._model.info
        shape = (batch, info.kv_heads, model.capacity, info.head_dim)
        for i, name in enumerate(model.tensors):
            address = self.address(first, i)
            context.set_shape(f"{PAST}{name}", shape)
            context.set_address(f"{PAST}{name}", address)
            if model.in_place:
                context.set_address(f"present.{name}", address)

    def _bind_step(
        self, context: Context, count: int, batch: int, asked: Mapping[str, int] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Bind what depends on the number of ids; return the places in host memory to write the inputs to."""
        model = self._model
        views = {}
        if model.hidden is not None:
            context.set_shape(HIDDEN, (batch, count, int(model.hidden.shape[2])))
        for name, place in model.places(count, batch, asked)[0].items():
            if name != ROWS:
                context.set_shape(name, place.shape)
                context.set_address(name, self._inputs.address + place.offset)
            views[name] = np.ndarray(place.shape, place.dtype, self._host_inputs.array, place.offset)
        if self._new_rows is not None:
            for i, name in enumerate(model.tensors):
                address = self._new_rows.address + i * model.rows_stride(count, batch)
                context.set_address(f"new_key_values.{name}", address)
        return views
