"""Device memory that is used again: a tensor gives its place back when nobody holds it any more."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from divprune_edge.models.profiles import Shape
from divprune_edge.runtime.engines.device import Device, Memory, aligned


@dataclass(frozen=True, eq=False)
class Tensor:
    """A dense tensor in device memory; ``base`` is another one in the same place, which is held as long."""

    memory: Memory
    shape: Shape
    dtype: np.dtype[Any]
    base: Tensor | None = None

    @property
    def address(self) -> int:
        """Where it starts."""
        return self.memory.address

    @property
    def nbytes(self) -> int:
        """Its size."""
        return tensor_bytes(self.shape, self.dtype)


class Pool:
    """Tensors of one device.

    A place that was given back may be taken while work on the former tensor is still under way: everything runs on
    one stream, so what comes later there also happens later.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[Memory]] = defaultdict(list)

    def take(self, shape: Shape, dtype: Any, room: Shape = ()) -> Tensor:
        """Return a tensor; what is in it is anything.

        Tensors of the same use but of other shapes take each other's places if ``room`` is the largest of these.
        """
        size = aligned(max(tensor_bytes(shape, dtype), tensor_bytes(room, dtype) if room else 1))
        free = self._free[size]
        # The place that was given back last: the same question after the same question meets the same addresses.
        memory = free.pop() if free else self._device.allocate(size)
        tensor = Tensor(memory, shape, np.dtype(dtype))
        weakref.finalize(tensor, free.append, memory).atexit = False
        return tensor

    def missing(self, tensors: Iterable[tuple[Shape, Any]]) -> int:
        """Return the bytes that would have to be allocated to hold all these at once."""
        there = {size: len(free) for size, free in self._free.items()}
        total = 0
        for shape, dtype in tensors:
            size = aligned(max(tensor_bytes(shape, dtype), 1))
            if there.get(size, 0):
                there[size] -= 1
            else:
                total += size
        return total

    def reserve(self, tensors: Iterable[tuple[Shape, Any]]) -> None:
        """Make sure that all these can be held at once without another allocation."""
        held = [self.take(shape, dtype) for shape, dtype in tensors]
        held.clear()


def tensor_bytes(shape: Shape, dtype: Any) -> int:
    """Return the size of a dense tensor."""
    return math.prod(shape) * int(np.dtype(dtype).itemsize)
