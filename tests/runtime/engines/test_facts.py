"""What is asked of CUDA and TensorRT, and what is said where they are missing."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from divprune_edge.errors import UserError
from divprune_edge.runtime.engines import facts
from divprune_edge.runtime.engines.facts import device_facts, host_memory, import_cuda, import_tensorrt

GIB = 1 << 30


class Error(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815


class FakeCuda:
    """Stands in for ``cuda.bindings.runtime``: an Orin with 3 GiB that are plainly free."""

    cudaError_t = Error  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
        cudaDevAttrIntegrated="integrated",
    )

    def __init__(self) -> None:
        self.attributes = {"major": 8, "minor": 7, "integrated": 1}
        self.count: tuple[Any, ...] = (Error.cudaSuccess, 1)
        self.memory: tuple[Any, ...] = (Error.cudaSuccess, 3 * GIB, 8 * GIB)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:  # noqa: N802
        return self.count

    def cudaDeviceGetAttribute(self, attr: str, device: int) -> tuple[Any, ...]:  # noqa: N802
        assert device == 0
        return Error.cudaSuccess, self.attributes[attr]

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:  # noqa: N802
        return Error.cudaSuccess, 12060

    def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        return self.memory

    def cudaGetErrorString(self, error: Error) -> tuple[Any, ...]:  # noqa: N802
        return Error.cudaSuccess, {35: b"driver too old", 2: b"out of memory"}[int(error)]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    monkeypatch.setattr(facts, "import_cuda", lambda: made)
    monkeypatch.setattr(facts, "import_tensorrt", lambda: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(facts, "host_memory", lambda: (5 * GIB, 2 * GIB))
    return made


def test_a_jetson_counts_what_the_file_cache_gives_back(cuda: FakeCuda) -> None:
    found = device_facts()
    assert (found.sm, found.cuda, found.tensorrt, found.shared_memory) == (87, "12.6", "10.3.0", True)
    assert (found.free_memory, found.host_memory) == (5 * GIB, 7 * GIB)


def test_a_card_has_memory_of_its_own(cuda: FakeCuda) -> None:
    cuda.attributes.update(major=12, minor=0, integrated=0)
    found = device_facts()
    assert (found.sm, found.shared_memory, found.free_memory) == (120, False, 3 * GIB)


@pytest.mark.parametrize("count", [(Error.cudaErrorInsufficientDriver, None), (Error.cudaSuccess, 0)])
def test_no_gpu(cuda: FakeCuda, count: tuple[Any, ...]) -> None:
    cuda.count = count
    with pytest.raises(UserError, match=r"There is no GPU that CUDA can use here.*--backend cpu"):
        device_facts()


def test_cuda_fails(cuda: FakeCuda) -> None:
    cuda.memory = (Error.cudaErrorMemoryAllocation, None, None)
    with pytest.raises(UserError, match=r"CUDA does not tell about the GPU \(out of memory\)"):
        device_facts()


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"cannot be loaded \(.*--system-site-packages.*pip install tensorrt"):
        import_tensorrt()
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    assert import_tensorrt() is sys.modules["tensorrt"]


def test_without_cudas_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(UserError, match=r"cannot be loaded \(.*pip install cuda-python'.*<13"):
        import_cuda()


def test_the_memory_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text(
        "MemTotal:  16000 kB\nMemAvailable:   1000 kB\nSwapFree:    24 kB\nHugePages_Total:   0\n"
    )
    assert host_memory(path) == (1000 << 10, 24 << 10)
    assert host_memory(tmp_path / "none") == (0, 0)
