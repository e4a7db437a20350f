"""What engines are built for, and held against when they are opened: GPU, versions, memory, asked for before either.

Once it runs, a device asks for the free memory again (:mod:`.cuda`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError
from divprune_edge.models.tensorrt import Edition

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class DeviceFacts:
    """The GPU that the engines are built and run on, and what it comes with.

    Attributes:
        edition: of TensorRT.
        sms: its compute capability times ten; those of all GPUs that engines are built for ahead of time.
        cuda: version that the driver offers, such as ``12.6``; None where the driver finishes the engines itself, so
            that they do not depend on it.
        tensorrt: the edition's version, such as ``10.3.0``.
        shared_memory: CPU and GPU share the memory, as on a Jetson.
        free_memory: bytes that an allocation on the GPU can get; 0 where no GPU is asked.
        host_memory: bytes that the CPU can get, swap included.
    """

    edition: Edition
    sms: tuple[int, ...]
    cuda: str | None
    tensorrt: str
    shared_memory: bool
    free_memory: int
    host_memory: int

    @property
    def library(self) -> str:
        """Edition and version, for messages."""
        return f"{self.edition.title} {self.tensorrt}"


def facts_ahead(edition: Edition, sms: tuple[int, ...]) -> DeviceFacts:
    """Return the facts of GPUs that need not be here, to build engines for.

    Raises:
        UserError: TensorRT is not there.
    """
    available, swap = host_memory()
    return DeviceFacts(edition, sms, None, str(edition.load().__version__), False, 0, available + swap)


def device_facts(edition: Edition) -> DeviceFacts:
    """Ask CUDA and TensorRT about the first GPU.

    Raises:
        UserError: one of them is not there; the sentence says how to get it.
    """
    trt = edition.load()
    cudart = import_cuda()
    try:
        count, status = _call(cudart, cudart.cudaGetDeviceCount())
    except RuntimeError as error:  # cuda-python 12.6 where the driver's library is missing
        count, status = 0, str(error)
    if not count:
        raise UserError(
            f"There is no GPU that CUDA can use here ({status}): engines are built and run on the device itself; "
            "elsewhere '--backend cpu' runs the same bundle.",
            code="gpu-missing",
        )
    major, minor, shared = (
        _need(cudart, cudart.cudaDeviceGetAttribute(name, 0))
        for name in (
            cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
            cudart.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
            cudart.cudaDeviceAttr.cudaDevAttrIntegrated,
        )
    )
    version = _need(cudart, cudart.cudaDriverGetVersion())
    free, _ = _need(cudart, cudart.cudaMemGetInfo())
    available, swap = host_memory()
    return DeviceFacts(
        edition=edition,
        sms=(10 * major + minor,),
        cuda=None if edition.ahead_of_time else f"{version // 1000}.{version % 1000 // 10}",
        tensorrt=str(trt.__version__),
        shared_memory=bool(shared),
        free_memory=allocatable(free, shared=shared),
        host_memory=available + swap,
    )


def import_cuda() -> Any:
    """Return the module ``cuda.bindings.runtime``.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise UserError(
            f"CUDA's Python bindings cannot be loaded ({error}): 'pip install cuda-python', with '<13' behind it for "
            "CUDA 12; on JetPack 6 'pip install cuda-python==12.6.2.post1'.",
            code="cuda-bindings-missing",
        ) from error
    return runtime


def host_memory(meminfo: Path = _MEMINFO) -> tuple[int, int]:
    """Return (available, free swap) in bytes; zeros where the system does not tell."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes.get("MemAvailable", 0), sizes.get("SwapFree", 0)


def allocatable(free: int, *, shared: bool) -> int:
    """Return the bytes that an allocation on the GPU can get, of what CUDA says is ``free``.

    Where memory is shared, CUDA does not count what the system's file cache would give back.
    """
    return max(free, host_memory()[0]) if shared else free


def _call(cudart: Any, result: tuple[Any, ...]) -> tuple[Any, str]:
    """Return (value or None, message) of what a function of the bindings returned."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        return None, cudart.cudaGetErrorString(error)[1].decode()
    return (values[0] if len(values) == 1 else tuple(values)), ""


def _need(cudart: Any, result: tuple[Any, ...]) -> Any:
    value, message = _call(cudart, result)
    if message:
        raise UserError(
            f"CUDA does not tell about the GPU ({message}): check the driver.", code="cuda-unavailable"
        )
    return value
