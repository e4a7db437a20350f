"""This device as far as engines are concerned: GPU, versions, memory. The one place that asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import UserError

_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class DeviceFacts:
    """The GPU that the engines are built and run on, and what it comes with.

    Attributes:
        sm: compute capability times ten.
        cuda: version that the driver offers, such as ``12.6``.
        tensorrt: version, such as ``10.3.0``.
        shared_memory: CPU and GPU share the memory, as on a Jetson.
        free_memory: bytes that an allocation on the GPU can get.
        host_memory: bytes that the CPU can get, swap included.
    """

    sm: int
    cuda: str
    tensorrt: str
    shared_memory: bool
    free_memory: int
    host_memory: int


def device_facts() -> DeviceFacts:
    """Ask CUDA and TensorRT about the first GPU.

    Raises:
        UserError: one of them is not there; the sentence says how to get it.
    """
    trt = import_tensorrt()
    cudart = import_cuda()
    try:
        count, status = _call(cudart, cudart.cudaGetDeviceCount())
    except RuntimeError as error:  # cuda-python 12.6 where the driver's library is missing
        count, status = 0, str(error)
    if not count:
        raise UserError(
            f"There is no GPU that CUDA can use here ({status}): engines are built and run on the device itself; "
            "elsewhere '--backend cpu' runs the same bundle."
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
        sm=10 * major + minor,
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        tensorrt=str(trt.__version__),
        shared_memory=bool(shared),
        # Where memory is shared, CUDA does not count what the system's file cache would give back.
        free_memory=max(free, available) if shared else free,
        host_memory=available + swap,
    )


def import_tensorrt() -> Any:
    """Return the module ``tensorrt``.

    Raises:
        UserError: it is not installed, or does not load.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise UserError(
            f"TensorRT's Python module cannot be loaded ({error}): on a Jetson it comes with JetPack, for an "
            "environment made with 'python3 -m venv --system-site-packages'; elsewhere 'pip install tensorrt'."
        ) from error
    return tensorrt


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
            "CUDA 12; on JetPack 6 'pip install cuda-python==12.6.2.post1'."
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


def _call(cudart: Any, result: tuple[Any, ...]) -> tuple[Any, str]:
    """Return (value or None, message) of what a function of the bindings returned."""
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        return None, cudart.cudaGetErrorString(error)[1].decode()
    return (values[0] if len(values) == 1 else tuple(values)), ""


def _need(cudart: Any, result: tuple[Any, ...]) -> Any:
    value, message = _call(cudart, result)
    if message:
        raise UserError(f"CUDA does not tell about the GPU ({message}): check the driver.")
    return value
