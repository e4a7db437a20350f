"""The interface between the TensorRT backend and the device: memory, one stream, CUDA graphs, plans.

The backend is written against these protocols; ``cuda.py`` and ``plan.py`` are what a GPU has behind them. All work
goes to the device's one stream and is done in the order in which it was asked for; only :meth:`Device.synchronize`
waits. Addresses are plain integers, because that is what TensorRT binds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from divprune_edge.models.profiles import ALIGNMENT, Shape
from divprune_edge.plugins.abi import Append, Problem
from divprune_edge.plugins.loader import Library

Graph = Any
"""Work that was captured, in the device's own form."""


def aligned(nbytes: int) -> int:
    """Return ``nbytes``, rounded up so that what lies behind starts on :data:`ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


class Memory(Protocol):
    """Device memory; given back when the object is."""

    @property
    def address(self) -> int:
        """Where it starts, on :data:`ALIGNMENT`."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


class HostMemory(Memory, Protocol):
    """Page-locked host memory: copies to and from it may be part of a graph."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """Its bytes [nbytes]."""
        ...


class Context(Protocol):
    """A plan made ready to run with one of its optimisation profiles."""

    def set_shape(self, name: str, shape: Shape) -> None:
        """Set the shape of an input that has dynamic dimensions."""
        ...

    def set_address(self, name: str, address: int) -> None:
        """Bind an input or output to device memory."""
        ...

    def enqueue(self) -> None:
        """Run on what is bound.

        Raises:
            DivpruneError: TensorRT refused.
        """
        ...


class Plan(Protocol):
    """A deserialised engine."""

    @property
    def names(self) -> Sequence[str]:
        """Inputs and outputs."""
        ...

    def shape(self, name: str) -> Shape:
        """Return the shape of an input or output, -1 where a dimension varies."""
        ...

    @property
    def profiles(self) -> int:
        """Number of optimisation profiles."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a run needs for activations, whatever the profile.

        Contexts may share it, since nothing in it outlives a run and runs follow each other on one stream.
        """
        ...

    def limits(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """Return the smallest and the largest shape of an input in a profile."""
        ...

    def context(self, profile: int, scratch: Memory, *, varying: bool = False) -> Context:
        """Make a context that keeps its activations in ``scratch``; ``varying`` says that its shapes change often."""
        ...


class Device(Protocol):
    """One GPU and one stream of it."""

    @property
    def name(self) -> str:
        """What it is, for messages and reports."""
        ...

    def free_bytes(self) -> int:
        """Return the memory that can still be allocated."""
        ...

    def allocate(self, nbytes: int) -> Memory:
        """Return device memory; what is in it is anything.

        Raises:
            DivpruneError: there is not as much left.
        """
        ...

    def pinned(self, nbytes: int) -> HostMemory:
        """Return page-locked host memory.

        Raises:
            DivpruneError: there is not as much left.
        """
        ...

    def clear(self, address: int, nbytes: int) -> None:
        """Fill device memory with zeros."""
        ...

    def upload(self, to: int, source: int, nbytes: int) -> None:
        """Copy from host memory to the device; the source must stay as it is until it has been read."""
        ...

    def download(self, to: int, source: int, nbytes: int) -> None:
        """Copy from the device to host memory; there once the device was synchronised."""
        ...

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy within the device."""
        ...

    def upload_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        """Copy ``count`` pieces of ``nbytes`` each to the device, their starts so many bytes apart."""
        ...

    def download_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        """The way back of :meth:`upload_pieces`."""
        ...

    def copy_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        """The same within the device."""
        ...

    def append_rows(self, sizes: Append, new_rows: int, caches: int, position: int) -> None:
        """Run ``divprune_append_rows`` on device memory; ``position`` is the address of an int64."""
        ...

    def max_min_bytes(self, sizes: Problem) -> int:
        """Return the workspace that :meth:`max_min` needs.

        Raises:
            UserError: the kernel does not take these sizes.
        """
        ...

    def max_min(
        self, sizes: Problem, workspace: Memory, tokens: int, valid: int, kept_tokens: int, kept_indices: int
    ) -> None:
        """Run ``divprune_max_min`` on device memory."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` asks for instead of doing it.

        Raises:
            DivpruneError: something in it cannot be captured.
        """
        ...

    def launch(self, graph: Graph) -> None:
        """Do what was recorded."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was asked for is done.

        Raises:
            DivpruneError: something of it failed.
        """
        ...

    def load(self, plan: Any, title: str, key: str, library: Library | None = None) -> Plan:
        """Deserialise an engine. It may not bring host code along, so its plugin must be known before.

        Args:
            plan: its bytes, anything with the buffer protocol; already checked to be what was built.
            title: what it is, for messages.
            key: a digest of it, under which what is made of it here may be kept.
            library: of the plugin that is in it; None if there is none.

        Raises:
            UserError: the library does not fit this TensorRT.
            DivpruneError: TensorRT does not accept the plan, or the library.
        """
        ...
