"""What is asked of CUDA and TensorRT, and what is said where they are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from fake_cuda import FakeRuntime, cudaError_t
from fake_device import FakeDevice
from raising import refused

from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX, Edition
from divprune_edge.runtime.engines import facts
from divprune_edge.runtime.engines.facts import device_facts, facts_ahead, host_memory, import_cuda

GIB = 1 << 30


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """An Orin with 3 GiB that are plainly free."""
    made = FakeRuntime(FakeDevice(free=3 * GIB))
    made.integrated = 1
    monkeypatch.setattr(facts, "import_cuda", lambda: made)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1.7.1.116"))
    monkeypatch.setattr(facts, "host_memory", lambda: (5 * GIB, 2 * GIB))
    return made


def test_a_jetson_counts_what_the_file_cache_gives_back(cuda: FakeRuntime) -> None:
    found = device_facts(TENSORRT)
    assert (found.sms, found.cuda, found.tensorrt, found.shared_memory) == ((87,), "12.6", "10.3.0", True)
    assert (found.free_memory, found.host_memory) == (5 * GIB, 7 * GIB)


def test_a_card_has_memory_of_its_own(cuda: FakeRuntime) -> None:
    cuda.capability, cuda.integrated = (12, 0), 0
    found = device_facts(TENSORRT)
    assert (found.sms, found.shared_memory, found.free_memory) == ((120,), False, 3 * GIB)


@pytest.mark.parametrize("fail", [{"cudaGetDeviceCount": cudaError_t.cudaErrorInsufficientDriver}, {}])
def test_no_gpu(cuda: FakeRuntime, fail: dict[str, cudaError_t]) -> None:
    cuda.fail, cuda.count = fail, 0
    with refused("gpu-missing", "--backend cpu"):
        device_facts(TENSORRT)


def test_cuda_fails(cuda: FakeRuntime) -> None:
    cuda.fail["cudaMemGetInfo"] = cudaError_t.cudaErrorMemoryAllocation
    with refused("cuda-unavailable", "what CUDA says"):
        device_facts(TENSORRT)


def test_an_rtx_card_finishes_engines_itself(cuda: FakeRuntime) -> None:
    """Nothing depends on the CUDA version that the driver offers."""
    cuda.capability, cuda.integrated = (12, 0), 0
    found = device_facts(TENSORRT_RTX)
    assert (found.sms, found.cuda, found.library) == ((120,), None, "TensorRT-RTX 1.7.1.116")


def test_gpus_that_are_not_here(cuda: FakeRuntime) -> None:
    """CUDA is not asked, and no memory on the GPU can be counted."""
    cuda.fail["cudaGetDeviceCount"] = cudaError_t.cudaErrorInsufficientDriver
    found = facts_ahead(TENSORRT_RTX, (86, 120))
    assert (found.sms, found.cuda, found.free_memory, found.host_memory) == ((86, 120), None, 0, 7 * GIB)
    assert found.library == "TensorRT-RTX 1.7.1.116"


@pytest.mark.parametrize(
    ("edition", "told"),
    [
        (
            TENSORRT,
            ("TensorRT's", "--system-site-packages", "pip install tensorrt"),
        ),
        (
            TENSORRT_RTX,
            ("TensorRT-RTX's", "tensorrt-rtx-cu13", "'.[rtx]'"),
        ),
    ],
    ids=["tensorrt", "tensorrt-rtx"],
)
def test_without_tensorrt(edition: Edition, told: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, edition.module, None)
    for ask in (device_facts, lambda edition: facts_ahead(edition, (89,))):
        with refused("tensorrt-missing", *told):
            ask(edition)
    monkeypatch.setitem(sys.modules, edition.module, ModuleType(edition.module))
    assert edition.load() is sys.modules[edition.module]


def test_without_cudas_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    with refused("cuda-bindings-missing", "pip install cuda-python", "<13"):
        import_cuda()


def test_the_memory_of_the_host(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text(
        "MemTotal:  16000 kB\nMemAvailable:   1000 kB\nSwapFree:    24 kB\nHugePages_Total:   0\n"
    )
    assert host_memory(path) == (1000 << 10, 24 << 10)
    assert host_memory(tmp_path / "none") == (0, 0)
