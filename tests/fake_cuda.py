"""FAKE modules ``cuda.bindings.runtime`` and ``tensorrt`` over ``fake_device.FakeDevice``. For tests only.

They stand below ``runtime/engines/cuda.py`` and ``plan.py``, so that these run as they are: order of arguments, what
is done with a status, what is freed. Names and signatures are those of the real bindings, to which
``tests/runtime/engines/test_bindings.py`` holds the two modules.
"""

# ruff: noqa: N801, N802, N815 - names of CUDA

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fake_device import FakeContext, FakeDevice, FakeGraph, FakePlan

STREAM = 77


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class FakeRuntime:
    """CUDA's runtime. ``fail`` maps the name of a function to the status that it returns."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = Kind
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated=18)

    def __init__(self, device: FakeDevice | None = None) -> None:
        self.device = device or FakeDevice()
        self.fail: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self.count, self.integrated = 1, 0
        self._held: dict[int, Any] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not callable(found) or not name.startswith("cuda") or isinstance(found, type):
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return self.fail[name], None
            values = found(*arguments)
            return (cudaError_t.cudaSuccess, *(values if isinstance(values, tuple) else (values,)))

        return call

    def cudaGetDeviceCount(self) -> int:
        return self.count

    def cudaSetDevice(self, device: int) -> tuple[()]:
        assert device == 0
        return ()

    def cudaGetDeviceProperties(self, device: int) -> Any:
        return SimpleNamespace(name=b"Fake GPU\0\0\0")

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> int:
        assert (attribute, device) == (18, 0)
        return self.integrated

    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.device.free_bytes(), 1 << 41

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == self.cudaStreamNonBlocking
        return STREAM

    def cudaStreamSynchronize(self, stream: int) -> tuple[()]:
        assert stream == STREAM
        self.device.synchronize()
        return ()

    def cudaMalloc(self, size: int) -> int:
        return self._hold(self.device.allocate(size))

    def cudaMallocHost(self, size: int) -> int:
        return self._hold(self.device.pinned(size))

    def _hold(self, handle: Any) -> int:
        self._held[handle.address] = handle
        return int(handle.address)

    def cudaFree(self, address: int) -> tuple[()]:
        del self._held[address]
        return ()

    cudaFreeHost = cudaFree

    def cudaMemsetAsync(self, address: int, value: int, count: int, stream: int) -> tuple[()]:
        assert (value, stream) == (0, STREAM)
        self.device.clear(address, count)
        return ()

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Kind, stream: int) -> tuple[()]:
        return self.cudaMemcpy2DAsync(dst, count, src, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Kind, stream: int
    ) -> tuple[()]:
        assert stream == STREAM
        assert min(dpitch, spitch) >= width
        up = kind == Kind.cudaMemcpyHostToDevice
        move = self.device.upload_pieces if up else self.device.download_pieces
        move(dst, dpitch, src, spitch, width, height)
        return ()

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[()]:
        self.device.begin_capture()
        return ()

    def cudaStreamEndCapture(self, stream: int) -> FakeGraph:
        return self.device.end_capture()

    def cudaGraphInstantiate(self, graph: FakeGraph, flags: int) -> FakeGraph:
        assert flags == 0
        return graph

    def cudaGraphUpload(self, ready: FakeGraph, stream: int) -> tuple[()]:
        return ()

    def cudaGraphDestroy(self, graph: FakeGraph) -> tuple[()]:
        return ()

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, ready: FakeGraph, stream: int) -> tuple[()]:
        assert stream == STREAM
        self.device.launch(ready)
        return ()

    def cudaGetLastError(self) -> tuple[()]:
        return ()

    def cudaGetErrorString(self, error: cudaError_t) -> bytes:
        return b"what CUDA says"


class FakeTensorRt:
    """The module ``tensorrt``: its runtime, over plans of the fake device."""

    __version__ = "10.3.0"
    TensorLocation = SimpleNamespace(DEVICE=0, HOST=1)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED=2)

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.refuse: set[str] = set()
        self.location = 0
        self.host_code: list[bool] = []
        self.loaded_libraries: list[str] = []

    def Runtime(self, log: Any) -> Any:
        self.log = log
        self.runtime = SimpleNamespace(engine_host_code_allowed=None, deserialize_cuda_engine=self._load)
        return self.runtime

    def get_plugin_registry(self) -> Any:
        def load_library(path: str) -> object:
            self.loaded_libraries.append(path)
            return object()

        creator = SimpleNamespace(name="MaxMinDiversity", plugin_version="1", plugin_namespace="")
        return SimpleNamespace(
            all_creators=[creator] if self.loaded_libraries else [],
            get_creator=lambda *_: creator,
            load_library=load_library,
        )

    def _ok(self, name: str, act: Callable[[], Any]) -> bool:
        if name in self.refuse:
            self.log.log(1, f"{name} was\nrefused.")
            return False
        act()
        return True

    def _load(self, data: Any) -> Any:
        self.host_code.append(self.runtime.engine_host_code_allowed)
        if "deserialize" in self.refuse:
            self.log.log(2, "a warning")
            self.log.log(1, "magic tag does not match")
            return None
        return self._engine(self.device.load(data, "an engine", "a digest"))

    def _engine(self, plan: FakePlan) -> Any:
        return SimpleNamespace(
            num_io_tensors=len(plan.names),
            get_tensor_name=lambda i: plan.names[i],
            get_tensor_location=lambda name: self.location,
            num_optimization_profiles=plan.profiles,
            device_memory_size_v2=plan.scratch_bytes,
            get_tensor_profile_shape=lambda name, profile: [
                list(plan.shapes[profile][name][end]) for end in ("min", "opt", "max")
            ],
            create_execution_context=lambda strategy: self._context(plan, strategy),
        )

    def _context(self, plan: FakePlan, strategy: int) -> Any:
        assert strategy == 2
        held: list[FakeContext] = []

        def set_memory(address: int, size: int) -> None:
            held.append(plan.context(profiles[-1], SimpleNamespace(address=address, nbytes=size)))

        profiles: list[int] = []
        return SimpleNamespace(
            set_optimization_profile_async=lambda profile, stream: self._ok(
                "profile", lambda: profiles.append(profile)
            ),
            set_device_memory=set_memory,
            set_input_shape=lambda name, shape: self._ok("shape", lambda: held[0].set_shape(name, shape)),
            set_tensor_address=lambda name, memory: self._ok(
                "address", lambda: held[0].set_address(name, memory)
            ),
            execute_async_v3=lambda stream: self._ok("enqueue", held[0].enqueue) and stream == STREAM,
        )
