"""The device as CUDA gives it, through ``cuda.bindings`` (cuda-bindings 12.8 or newer): no torch.

What is special about Jetson is in :meth:`CudaDevice.free_bytes` alone: there, CPU and GPU share one memory.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.tensorrt import TENSORRT, Edition
from divprune_edge.plugins import abi
from divprune_edge.plugins.loader import Library, find_library
from divprune_edge.runtime.engines.facts import allocatable, import_cuda

if TYPE_CHECKING:
    from divprune_edge.runtime.engines.device import Memory
    from divprune_edge.runtime.engines.plan import Plans, TensorRtPlan

_FIRST = 0
"""The device that is used; ``CUDA_VISIBLE_DEVICES`` says which one that is."""


class CudaDevice:
    """The first visible GPU and a stream of its own.

    Args:
        edition: of the TensorRT that loads plans.

    Raises:
        UserError: cuda-python is not installed, or there is no GPU that it can use.
    """

    def __init__(self, edition: Edition = TENSORRT) -> None:
        self._edition = edition
        self._runtime = import_cuda()
        count = self._open("look for a GPU", self._runtime.cudaGetDeviceCount)
        if count == 0:
            hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise UserError(
                "There is no CUDA GPU here"
                + (f" but those that CUDA_VISIBLE_DEVICES='{hidden}' hides" if hidden is not None else "")
                + ": use '--backend cpu'"
                + (", or unset that." if hidden is not None else "."),
                code="gpu-missing",
            )
        self._open("use the GPU", self._runtime.cudaSetDevice, _FIRST)
        # A stream that does not wait for the default one, which TensorRT would pay for with synchronisations.
        flags = self._runtime.cudaStreamNonBlocking
        self._stream = self._open("make a stream", self._runtime.cudaStreamCreateWithFlags, flags)

    @property
    def stream(self) -> int:
        """The ``cudaStream_t`` as an integer."""
        return int(self._stream)

    @cached_property
    def name(self) -> str:
        """See :class:`~divprune_edge.runtime.engines.device.Device`, also for what follows."""
        properties = self._call("name the GPU", self._runtime.cudaGetDeviceProperties, _FIRST)
        return str(properties.name.split(b"\0")[0].decode(errors="replace"))

    def free_bytes(self) -> int:
        """See :func:`~divprune_edge.runtime.engines.facts.allocatable`."""
        free, _ = self._call("ask for the free memory", self._runtime.cudaMemGetInfo)
        integrated = self._call(
            "ask what the GPU is",
            self._runtime.cudaDeviceGetAttribute,
            self._runtime.cudaDeviceAttr.cudaDevAttrIntegrated,
            _FIRST,
        )
        return allocatable(int(free), shared=bool(integrated))

    def allocate(self, nbytes: int) -> CudaMemory:
        """``cudaMalloc``."""
        address = self._call(f"allocate {nbytes} bytes", self._runtime.cudaMalloc, nbytes)
        return CudaMemory(int(address), nbytes, self._runtime.cudaFree)

    def pinned(self, nbytes: int) -> CudaHostMemory:
        """``cudaMallocHost``."""
        address = self._call(f"allocate {nbytes} page-locked bytes", self._runtime.cudaMallocHost, nbytes)
        return CudaHostMemory(int(address), nbytes, self._runtime.cudaFreeHost)

    def clear(self, address: int, nbytes: int) -> None:
        """``cudaMemsetAsync``."""
        self._call("clear memory", self._runtime.cudaMemsetAsync, address, 0, nbytes, self._stream)

    def upload(self, to: int, source: int, nbytes: int) -> None:
        """``cudaMemcpyAsync``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("copy to the GPU", self._runtime.cudaMemcpyAsync, to, source, nbytes, kind, self._stream)

    def download(self, to: int, source: int, nbytes: int) -> None:
        """``cudaMemcpyAsync``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("copy from the GPU", self._runtime.cudaMemcpyAsync, to, source, nbytes, kind, self._stream)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """``cudaMemcpyAsync``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("copy on the GPU", self._runtime.cudaMemcpyAsync, to, source, nbytes, kind, self._stream)

    def upload_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        """``cudaMemcpy2DAsync``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        pieces = (to, to_step, source, source_step, nbytes, count)
        self._call("copy rows to the GPU", self._runtime.cudaMemcpy2DAsync, *pieces, kind, self._stream)

    def download_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        """``cudaMemcpy2DAsync``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        pieces = (to, to_step, source, source_step, nbytes, count)
        self._call("copy rows from the GPU", self._runtime.cudaMemcpy2DAsync, *pieces, kind, self._stream)

    def copy_pieces(
        self, to: int, to_step: int, source: int, source_step: int, nbytes: int, count: int
    ) -> None:
        """``cudaMemcpy2DAsync``."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        pieces = (to, to_step, source, source_step, nbytes, count)
        self._call("copy rows on the GPU", self._runtime.cudaMemcpy2DAsync, *pieces, kind, self._stream)

    def append_rows(self, sizes: abi.Append, new_rows: int, caches: int, position: int) -> None:
        """The kernel of the plugin library."""
        status = self._library.divprune_append_rows(sizes, new_rows, caches, position, self.stream)
        abi.check(self._library, status)

    def max_min_bytes(self, sizes: abi.Problem) -> int:
        """Ask the plugin library."""
        return abi.workspace_bytes(self._library, sizes)

    def max_min(
        self,
        sizes: abi.Problem,
        workspace: Memory,
        tokens: int,
        valid: int,
        kept_tokens: int,
        kept_indices: int,
    ) -> None:
        """The kernels of the plugin library."""
        places = (tokens, valid, kept_tokens, kept_indices, workspace.address, workspace.nbytes)
        abi.check(self._library, self._library.divprune_max_min(sizes, *places, self.stream))

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Capture what this thread asks for; another thread may go on allocating."""
        runtime, stream = self._runtime, self._stream
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("begin a CUDA graph", runtime.cudaStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            # Whatever went wrong, the stream must come out of its capture; what it holds is thrown away, and so is
            # CUDA's note of the failure, which TensorRT's next call could take for its own.
            status, unfinished = runtime.cudaStreamEndCapture(stream)
            if status == runtime.cudaError_t.cudaSuccess:
                runtime.cudaGraphDestroy(unfinished)
            runtime.cudaGetLastError()
            raise
        try:
            graph = self._call("end a CUDA graph", runtime.cudaStreamEndCapture, stream)
        except DivpruneError:
            runtime.cudaGetLastError()
            raise
        try:
            ready = self._call("instantiate a CUDA graph", runtime.cudaGraphInstantiate, graph, 0)
        finally:
            runtime.cudaGraphDestroy(graph)
        self._call("upload a CUDA graph", runtime.cudaGraphUpload, ready, stream)
        return CudaGraph(ready, runtime.cudaGraphExecDestroy)

    def launch(self, graph: CudaGraph) -> None:
        """``cudaGraphLaunch``."""
        self._call("launch a CUDA graph", self._runtime.cudaGraphLaunch, graph.handle, self._stream)

    def synchronize(self) -> None:
        """``cudaStreamSynchronize``."""
        self._call("finish what it was given", self._runtime.cudaStreamSynchronize, self._stream)

    def load(self, plan: Any, title: str, key: str, library: Library | None = None) -> TensorRtPlan:
        """Through TensorRT's runtime, on this device's stream."""
        return self._plans.load(plan, title, key, library)

    @cached_property
    def _plans(self) -> Plans:
        from divprune_edge.runtime.engines.plan import Plans

        return Plans(self.stream, self.synchronize, self._edition)

    @cached_property
    def _library(self) -> ctypes.CDLL:
        return abi.load(find_library().path)

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and return what it returns beside its status.

        Raises:
            UserError: memory ran out.
            DivpruneError: anything else.
        """
        status, *values = function(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            self._fail(what, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _fail(self, what: str, status: Any) -> None:
        reason = self._reason(status)
        if status == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise UserError(
                f"The GPU could not {what} ({reason}): close what else uses its memory, keep fewer visual tokens, or "
                "export with a smaller --capacity.",
                code="gpu-memory-too-small",
            )
        raise DivpruneError(f"The GPU could not {what} ({reason}).", code="gpu-failed")

    def _open(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same while the device is opened, where a failure says that none can be used."""
        try:
            status, *values = function(*arguments)
        except RuntimeError as error:  # cuda-python 12.6 where the driver's library is missing
            raise UserError(
                f"CUDA could not {what} ({error}): install the NVIDIA driver, start the container with it, or use "
                "'--backend cpu'.",
                code="cuda-unavailable",
            ) from error
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise UserError(
                f"CUDA could not {what} ({self._reason(status)}): check the NVIDIA driver, and that cuda-bindings "
                "are of its CUDA version or older, or use '--backend cpu'.",
                code="cuda-unavailable",
            )
        return values[0] if values else None

    def _reason(self, status: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(status)
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        return f"{getattr(status, 'name', status)}: {words}"


class CudaMemory:
    """Device memory, freed with the object (but not at the interpreter's end, when the driver does it)."""

    def __init__(self, address: int, nbytes: int, free: Callable[[int], Any]) -> None:
        self.address, self.nbytes = address, nbytes
        weakref.finalize(self, free, address).atexit = False


class CudaHostMemory(CudaMemory):
    """Page-locked host memory; ``array`` are its bytes."""

    @cached_property
    def array(self) -> npt.NDArray[np.uint8]:
        """See :class:`~divprune_edge.runtime.engines.device.HostMemory`."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.nbytes).from_address(self.address))


class CudaGraph:
    """An instantiated graph, destroyed with the object."""

    def __init__(self, handle: Any, destroy: Callable[[Any], Any]) -> None:
        self.handle = handle
        weakref.finalize(self, destroy, handle).atexit = False
