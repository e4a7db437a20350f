"""The memory that ONNX Runtime computes in, and the one door between it and the host.

Whatever passes that door is counted (:class:`Traffic`). What a cache needs is done behind it, by a small graph
(:mod:`~divprune_edge.runtime.backends.copy_graph`) on the device: room is cleared, rows are copied.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import DivpruneError
from divprune_edge.runtime.backends.copy_graph import copies

Array = npt.NDArray[Any]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES: dict[str, Any] = {
    name: getattr(np, name) for name in ("float32", "float16", "int64", "int32", "int8", "uint8")
} | {"bool": np.bool_}
_ONCE = 1 << 30
"""Elements that one run copies or clears at most: CUDA kernels count them in 32 bits."""


@dataclass
class Traffic:
    """Bytes that were handed from the host to the graphs, and by them to the host."""

    to_device: int = 0
    to_host: int = 0


@dataclass(frozen=True)
class TensorSpan:
    """A part of a tensor, seen as [count, rows, width]; ``begin`` counts elements from the tensor's first."""

    value: ort.OrtValue
    dtype: str
    shape: tuple[int, int, int]
    begin: int = 0

    @property
    def address(self) -> int:
        """Where it lies."""
        return int(self.value.data_ptr()) + self.begin * np.dtype(self.dtype).itemsize

    @property
    def wide(self) -> TensorSpan:
        """The same bytes as float32 where they are a multiple of four: one session copies all types of these."""
        size, (count, rows, width) = np.dtype(self.dtype).itemsize, self.shape
        if width * size % 4 or self.begin * size % 4:
            return self
        return TensorSpan(self.value, "float32", (count, rows, width * size // 4), self.begin * size // 4)

    def part(self, first: int, count: int) -> TensorSpan:
        """Return ``count`` of its first dimension, from ``first`` on."""
        _, rows, width = self.shape
        return TensorSpan(self.value, self.dtype, (count, rows, width), self.begin + first * rows * width)


class DeviceMemory:
    """Where the tensors of one backend lie; see the module's text.

    Args:
        device: ``cpu`` or ``cuda``.

    Attributes:
        captures: whether runs on buffers that stay are to be replayed from CUDA graphs.
        uncaptured: sessions that do without all the same, as one that ONNX Runtime captures nothing of.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.traffic = Traffic()
        self.captures = False
        self.uncaptured: WeakSet[ort.InferenceSession] = WeakSet()
        self._graphs = count(1)
        self._guard = threading.Lock()
        self._sessions: dict[str, ort.InferenceSession] = {}

    @property
    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """What the graphs run on; the arithmetic of shapes stays on the host."""
        # fp32 means fp32: TF32 would change which tokens a selector keeps.
        first = (PROVIDERS[self.device], {"use_tf32": "0"} if self.device == "cuda" else {})
        return [first] if self.device == "cpu" else [first, (PROVIDERS["cpu"], {})]

    def empty(self, shape: Sequence[int], dtype: str, *, on_host: bool = False) -> ort.OrtValue:
        """Return room for a tensor; what it holds is not known."""
        device = "cpu" if on_host else self.device
        return ort.OrtValue.ortvalue_from_shape_and_type(tuple(shape), TYPES[dtype], device)

    def new_graph(self) -> int:
        """Return a number that no captured graph has."""
        return next(self._graphs)

    def captures_of(self, session: ort.InferenceSession) -> bool:
        """Whether runs of a session are to be replayed."""
        return self.captures and session not in self.uncaptured

    def zeros(self, shape: Sequence[int], dtype: str) -> ort.OrtValue:
        """Return a tensor of zeros, cleared where it lies."""
        if self.device == "cpu":  # pages that nobody writes to cost nothing
            return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, TYPES[dtype]))
        value = self.empty(shape, dtype)
        self.clear(TensorSpan(value, dtype, (1, 1, math.prod(shape))))
        return value

    def clear(self, span: TensorSpan) -> None:
        """Write zeros."""
        span = span.wide
        zero = self.upload(np.zeros((1, 1, 1), span.dtype))
        size = math.prod(span.shape)
        for begin in range(0, size, _ONCE):
            rows = 1, min(_ONCE, size - begin), 1
            self.copy(
                TensorSpan(zero, span.dtype, (1, 1, 1)),
                [0],
                TensorSpan(span.value, span.dtype, rows, span.begin + begin),
            )

    def upload(self, array: Array) -> ort.OrtValue:
        """Return a tensor with the values of ``array``, which need not live as long."""
        value = self.empty(array.shape, array.dtype.name)
        value.update_inplace(np.ascontiguousarray(array))
        self.traffic.to_device += array.nbytes
        return value

    def download(self, value: ort.OrtValue) -> Array:
        """Return a tensor's values; on the CPU they are its memory, which must live as long."""
        array: Array = value.numpy()
        self.traffic.to_host += array.nbytes
        return array

    def on_host(self, value: ort.OrtValue) -> Array:
        """Return the memory of a tensor itself, which there is on the CPU alone."""
        assert self.device == "cpu"
        array: Array = value.numpy()
        return array

    def copy(self, source: TensorSpan, columns: npt.ArrayLike, target: TensorSpan, before: int = 0) -> None:
        """Copy ``columns`` of the rows of ``source`` into ``target``, behind ``before`` rows; its others become zeros.

        Both have the same count, width and type, and do not overlap.
        """
        wanted = np.asarray(columns, np.int64)
        if not (wanted.size and math.prod(source.shape)):
            return self.clear(target)
        if source.wide.dtype == target.wide.dtype:
            source, target = source.wide, target.wide
        session = self._session(source.dtype)
        pads = np.array([0, before, 0, 0, target.shape[1] - before - wanted.size, 0])
        once = max(1, _ONCE // max(math.prod(source.shape[1:]), math.prod(target.shape[1:]), 1))
        for first in range(0, source.shape[0], once):
            count = min(once, source.shape[0] - first)
            binding = session.io_binding()
            binding.bind_cpu_input("columns", wanted)
            binding.bind_cpu_input("pads", pads)
            for bind, name, span in (
                (binding.bind_input, "source", source.part(first, count)),
                (binding.bind_output, "target", target.part(first, count)),
            ):
                bind(name, self.device, 0, TYPES[span.dtype], span.shape, span.address)
            self.traffic.to_device += wanted.nbytes + pads.nbytes
            run_bound(session, binding)

    def take(self, value: ort.OrtValue, columns: npt.ArrayLike, axis: int = 1) -> ort.OrtValue:
        """Return some columns of an axis of a tensor."""
        shape, dtype = value.shape(), dtype_of(value)
        around = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        size = np.size(columns)
        taken = self.empty((*shape[:axis], size, *shape[axis + 1 :]), dtype)
        self.copy(
            TensorSpan(value, dtype, (around[0], shape[axis], around[1])),
            columns,
            TensorSpan(taken, dtype, (around[0], size, around[1])),
        )
        return taken

    def join(self, values: Sequence[ort.OrtValue], shape: Sequence[int]) -> ort.OrtValue:
        """Return tensors of one type, one behind the other, as one of ``shape``."""
        joined, begin = self.empty(shape, dtype_of(values[0])), 0
        for value in values:
            begin = self.put(value, joined, begin)
        return joined

    def put(self, value: ort.OrtValue, target: ort.OrtValue, begin: int) -> int:
        """Copy a tensor into another of its type, behind ``begin`` elements; return where it ends."""
        dtype, size = dtype_of(value), int(math.prod(value.shape()))
        self.copy(TensorSpan(value, dtype, (1, 1, size)), [0], TensorSpan(target, dtype, (1, 1, size), begin))
        return begin + size

    def _session(self, dtype: str) -> ort.InferenceSession:
        with self._guard:
            if dtype not in self._sessions:
                options = ort.SessionOptions()
                options.log_severity_level = 3
                # Copying is no work for threads, and those of one more pool would be in the way of the others.
                options.intra_op_num_threads = 1
                self._sessions[dtype] = ort.InferenceSession(copies(dtype), options, providers=self.providers)
            return self._sessions[dtype]


def run_bound(
    session: ort.InferenceSession, binding: ort.IOBinding, options: ort.RunOptions | None = None
) -> None:
    """Run a session on what is bound.

    Raises:
        DivpruneError: ONNX Runtime failed, as when memory runs out.
    """
    try:
        session.run_with_iobinding(binding, options)
    except Exception as error:  # an exception class per status code, all of them private
        raise DivpruneError(
            f"ONNX Runtime failed while running a graph ({reason_of(error)}): if memory ran out, keep fewer visual "
            "tokens or ask for a shorter answer.",
            code="onnxruntime-failed",
        ) from error


def reason_of(error: BaseException) -> str:
    """Return in one line what ONNX Runtime says went wrong; of CUDA's errors not in which of its templates."""
    said = " ".join(str(error).split())
    return said[max(said.find("CUDA failure"), 0) :][:300].rstrip(".")


def dtype_of(value: ort.OrtValue) -> str:
    """Return a tensor's element type as the manifest spells it."""
    name = str(value.data_type()).removeprefix("tensor(").removesuffix(")")
    return "float32" if name == "float" else name


@dataclass(frozen=True, eq=False)
class DeviceRows(Sequence[Array]):
    """The first rows of a KV cache, for other sequences to begin with; each tensor read of it is brought to the host.

    Attributes:
        memory: where they lie.
        whole: key and value of each layer, one behind the other, [tensors * kv_heads, length, head_dim].
        tensors: how many.
    """

    memory: DeviceMemory
    whole: TensorSpan
    tensors: int

    @classmethod
    def room(cls, memory: DeviceMemory, dtype: str, tensors: int, shape: tuple[int, int, int]) -> DeviceRows:
        """Return room for rows of ``shape`` [kv_heads, length, head_dim]."""
        heads, length, width = shape
        whole = tensors * heads, length, width
        # No tensor is without an address, also one of no rows.
        room = memory.empty((tensors * heads, max(length, 1), width), dtype)
        return cls(memory, TensorSpan(room, dtype, whole), tensors)

    @property
    def length(self) -> int:
        """How many rows."""
        return self.whole.shape[1]

    def span(self, tensor: int, count: int = 1) -> TensorSpan:
        """Return ``count`` tensors, from one on."""
        heads = self.whole.shape[0] // self.tensors
        return self.whole.part(tensor * heads, count * heads)

    def __len__(self) -> int:
        return self.tensors

    def __getitem__(self, index: Any) -> Any:
        if index >= self.tensors:
            raise IndexError(index)
        span = self.span(index)
        own = self.memory.empty((1, *span.shape), span.dtype)
        self.memory.copy(span, np.arange(self.length), TensorSpan(own, span.dtype, span.shape))
        return np.array(self.memory.download(own))
