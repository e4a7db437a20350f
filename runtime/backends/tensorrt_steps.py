"""What a step of the language model takes on TensorRT: where its inputs lie, and how many bytes it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from divprune_edge.manifest import LanguageInfo, LayerGroup, TensorInfo
from divprune_edge.models.dialects import DIALECTS
from divprune_edge.models.profiles import DECODE, HIDDEN, PREFILL, Shape
from divprune_edge.models.steps import STEPS, StepInputs
from divprune_edge.runtime.backends.session import Ints, along
from divprune_edge.runtime.engines.device import Device, Plan, aligned

VISUAL, PAST, ROWS = "visual_tokens", "past_key_values.", "cache_rows"
"""The visual tokens among an engine's inputs, what the names of the cache's inputs begin with; and what is no input:
the row of each slot's cache that new rows go to."""


@dataclass(frozen=True)
class Place:
    """Where an input of a step lies in the block that is copied to the device."""

    offset: int
    shape: Shape
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class LanguageSteps:
    """The engine of the language model, and the sizes of its steps.

    Args:
        device: where it runs.
        plan: the engine, with profiles for prefill and decode.
        info: of the manifest; dialect ``static`` or ``decomposed``.
        group: the engine's layers.
    """

    def __init__(self, device: Device, plan: Plan, info: LanguageInfo, group: LayerGroup) -> None:
        assert group.capacity is not None
        self.device, self.plan, self.info, self.group = device, plan, info, group
        self.axes = info.axes
        self.capacity = group.capacity
        self.prefill = min(PREFILL, plan.profiles - 1)
        self.entry = "input_ids" if info.takes_ids else HIDDEN
        self.longest = plan.limits(self.entry, self.prefill)[1][1]
        # Of a graph of a chain: hidden states that enter, those that it hands on, and what it reads of the layers.
        self.hidden = next((one for one in info.inputs if one.name == HIDDEN), None)
        self.handed = next((one for one in info.outputs if one.name == "hidden_out"), None)
        self.scores = tuple(one.name for one in info.outputs if one.name.startswith("scores."))
        self.tensors = group.cache_tensors
        self.cache_dtype = np.dtype(info.cache_dtype)
        self.row_bytes = info.head_dim * self.cache_dtype.itemsize
        self.slot_bytes = info.kv_heads * self.capacity * self.row_bytes
        self.in_place = not DIALECTS[info.dialect].hands_out_rows
        # TensorRT may choose kernels that a CUDA graph cannot hold; whether it did is known at the first capture.
        self.capturable = True

    @property
    def most_slots(self) -> int:
        """Sequences that a decode step of the engine takes."""
        return self.plan.limits(self.entry, DECODE)[1][0]

    def memory_bytes(self, slots: int) -> int:
        """Return the device memory of a session: caches, new rows, inputs, logits."""
        parts = (self.cache_bytes, self.new_rows_bytes, self.input_bytes, self.nothing_bytes)
        ids = aligned(8 * slots) if self.info.says_next else 0
        logits = aligned(4 * slots * self.info.vocabulary) if self.info.gives_logits else 0
        between = sum(self.hidden_bytes(one, slots) for one in (self.hidden, self.handed) if one is not None)
        return (
            sum(part(slots) for part in parts) + logits + ids + between + len(self.scores) * self.score_bytes
        )

    def cache_stride(self, slots: int) -> int:
        """Return the bytes between the caches of two tensors."""
        return aligned(slots * self.slot_bytes)

    def cache_bytes(self, slots: int) -> int:
        """Return the bytes of so many sequences' KV caches."""
        return len(self.tensors) * self.cache_stride(slots)

    def rows_stride(self, count: int, batch: int) -> int:
        """Return the bytes between the new rows of two tensors in a step of ``count`` ids per sequence."""
        return aligned(batch * self.info.kv_heads * count * self.row_bytes)

    def new_rows_bytes(self, slots: int) -> int:
        """Return the bytes of the new rows of the largest step; none where the graph writes them itself."""
        steps = self.rows_stride(self.longest, 1), self.rows_stride(1, slots)
        return 0 if self.in_place else len(self.tensors) * max(steps)

    def input_bytes(self, slots: int) -> int:
        """Return the bytes of the inputs of the largest step."""
        most = {name: size for name, size in self._largest.items() if name not in ("batch", "seq", "visual")}
        return max(self.places(self.longest, 1, most)[1], self.places(1, slots)[1])

    @property
    def _largest(self) -> dict[str, int]:
        """The largest size of each dimension of an input of a prefill."""
        return {
            size: self.plan.limits(tensor.name, self.prefill)[1][axis]
            for tensor in self.info.inputs
            for axis, size in enumerate(tensor.shape)
            if isinstance(size, str)
        }

    def hidden_bytes(self, tensor: TensorInfo, slots: int) -> int:
        """Return the bytes of the hidden states of the largest step."""
        width = int(tensor.shape[2]) * np.dtype(tensor.dtype).itemsize
        return aligned(max(self.longest, slots) * width)

    @property
    def score_bytes(self) -> int:
        """Bytes of what a watch reads of the largest prompt."""
        return aligned(4 * self.longest)

    def nothing_shape(self, batch: int) -> Shape:
        """Return the least shape of visual tokens that decode takes."""
        return (batch, self.plan.limits(VISUAL, DECODE)[0][1], int(self.info.visual.shape[2]))

    def nothing_bytes(self, slots: int) -> int:
        """Return its bytes; none where visual tokens are the first graph's."""
        if not self.info.takes_ids:
            return 0
        return aligned(math.prod(self.nothing_shape(slots)) * np.dtype(self.info.visual.dtype).itemsize)

    def places(
        self, count: int, batch: int, sizes: Mapping[str, int] | None = None
    ) -> tuple[dict[str, Place], int]:
        """Return where the inputs of a step of ``count`` ids for each of ``batch`` slots lie, and their bytes.

        ``sizes`` are those of other dimensions, of what a schedule's method is asked for; one where it is nothing.
        """
        wanted = {
            tensor.name: (
                _shape(tensor, {"batch": batch, "seq": count, **(sizes or {})}),
                np.dtype(tensor.dtype),
            )
            for tensor in self.info.inputs
            if tensor.name not in (VISUAL, HIDDEN) and not tensor.name.startswith(PAST)
        }
        if not self.in_place:
            wanted[ROWS] = ((batch,), np.dtype(np.int64))
        found, size = {}, 0
        for name, (shape, dtype) in wanted.items():
            found[name] = Place(size, shape, dtype)
            size += aligned(found[name].nbytes)
        return found, size

    def step(self, ids: Ints, positions: Ints, lengths: Ints) -> StepInputs:
        """Return what a step is fed; see :data:`~divprune_edge.models.steps.STEPS`."""
        places = along(positions, self.axes)
        return STEPS[self.info.dialect](ids, places, lengths, self.capacity, self.info.window)


def _shape(tensor: TensorInfo, sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes.get(size, 1) if isinstance(size, str) else size for size in tensor.shape)
