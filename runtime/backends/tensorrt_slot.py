"""The memory of one sequence on TensorRT, and its two kinds of steps.

What the host feeds per step travels in one copy, so a decode step on the host is: write some hundred bytes, launch one
graph, wait, read the logits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.plugins.abi import Append
from divprune_edge.runtime.backends.backend import CacheRows
from divprune_edge.runtime.backends.steps import StepInputs
from divprune_edge.runtime.engines.device import Context, Graph, Memory, Shape
from divprune_edge.runtime.engines.pool import Tensor
from divprune_edge.runtime.engines.profiles import DECODE

if TYPE_CHECKING:
    from divprune_edge.runtime.backends.tensorrt_language import TensorRtLanguage

_log = logging.getLogger("divprune_edge")
VISUAL, PAST = "visual_tokens", "past_key_values."
"""The visual tokens among an engine's inputs, and what the names of the cache's inputs begin with."""
_LOGITS = "logits"


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
        self._prefill = model.plan.context(model.prefill, scratch, varying=True)
        self._decode = model.plan.context(DECODE, scratch)
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
            context.set_shape(VISUAL, visual.shape)
            context.set_address(VISUAL, visual.address)
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
            context.set_shape(f"{PAST}{name}", shape)
            context.set_address(f"{PAST}{name}", address)
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
