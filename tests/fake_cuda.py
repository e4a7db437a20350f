"""FAKE modules ``cuda.bindings.runtime`` and ``tensorrt`` over ``fake_device.FakeDevice``. For tests only.

They stand below ``runtime/engines/cuda.py`` and ``plan.py``, so that these run as they are: order of arguments, what
is done with a status, what is freed. Names and signatures are those of the real bindings:
``tests/runtime/engines/test_bindings.py`` holds the two modules to them, ``test_fakes.py`` what is here.
"""

# ruff: noqa: N801, N802, N815 - names of CUDA

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

from fake_device import FakeContext, FakeDevice, FakeGraph, FakePlan

from divprune_edge.plugins.loader import PLUGIN

STREAM = 77


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class FakeRuntime:
    """CUDA's runtime. ``fail`` maps the name of a function to the status that it returns."""

    cudaError_t = cudaError_t
    cudaMemcpyKind = Kind
    cudaStreamNonBlocking = 1
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrIntegrated=18, cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
    )

    def __init__(self, device: FakeDevice | None = None) -> None:
        self.device = device or FakeDevice()
        self.fail: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self.count, self.integrated, self.capability = 1, 0, (8, 7)
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
        assert device == 0
        return {18: self.integrated, 75: self.capability[0], 76: self.capability[1]}[attribute]

    def cudaDriverGetVersion(self) -> int:
        return 12060

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
        move = {
            Kind.cudaMemcpyHostToDevice: self.device.upload_pieces,
            Kind.cudaMemcpyDeviceToHost: self.device.download_pieces,
            Kind.cudaMemcpyDeviceToDevice: self.device.copy_pieces,
        }[kind]
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


class PluginCreator:
    """Of a plugin; ours if nothing is said."""

    name, plugin_version, plugin_namespace = PLUGIN


class OtherCreator(PluginCreator):
    name = "Another"


class PluginRegistry:
    """``loaded`` are the libraries that it took; it may accept none, or not find the creator in them."""

    def __init__(self, *, accepts: bool = True, has_creator: bool = True) -> None:
        self.loaded: list[str] = []
        self._accepts, self._has_creator = accepts, has_creator

    @property
    def all_creators(self) -> list[PluginCreator]:
        return [OtherCreator(), *([PluginCreator()] if self.loaded and self._has_creator else [])]

    def load_library(self, plugin_path: str) -> object | None:
        if self._accepts:
            self.loaded.append(plugin_path)
        return object() if self._accepts else None

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> PluginCreator | None:
        assert self.loaded, "TensorRT logs it as an error where there is none"
        return PluginCreator() if self._has_creator and (type, version, plugin_namespace) == PLUGIN else None


class Strategy(enum.Enum):
    """Of allocation, of CUDA graphs, and of kernels for the shapes at hand."""

    USER_MANAGED, DISABLED, LAZY, EAGER = range(4)


class RuntimeCache:
    """TensorRT-RTX's: kernels that were made on the card; here, one more with every start."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, buffer: bytes) -> bool:
        self.kernels = buffer
        return True

    def serialize(self) -> bytes:
        return self.kernels + b"made "


class RuntimeConfig:
    """TensorRT-RTX's; ``made_with`` is what it was told."""

    dynamic_shapes_kernel_specialization_strategy: Strategy | None = None
    cuda_graph_strategy: Strategy | None = None

    def __init__(self) -> None:
        self.allocation: Strategy | None = None
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Engine:
    """``ICudaEngine`` over a plan of the fake device."""

    def __init__(self, tensorrt: FakeTensorRt, plan: FakePlan) -> None:
        self._tensorrt, self._plan = tensorrt, plan

    @property
    def num_io_tensors(self) -> int:
        return len(self._plan.names)

    @property
    def num_optimization_profiles(self) -> int:
        return self._plan.profiles

    @property
    def device_memory_size_v2(self) -> int:
        return self._plan.scratch_bytes

    def get_tensor_name(self, index: int) -> str:
        return self._plan.names[index]

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._plan.shape(name))

    def get_tensor_location(self, name: str) -> int:
        return self._tensorrt.location

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [list(self._plan.shapes[profile_index][name][end]) for end in ("min", "opt", "max")]

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, strategy: Strategy | RuntimeConfig) -> Context:
        self._tensorrt.contexts.append(strategy)
        allocation = strategy.allocation if isinstance(strategy, RuntimeConfig) else strategy
        assert allocation is Strategy.USER_MANAGED
        return Context(self._tensorrt, self._plan)


class Context:
    """``IExecutionContext`` over one of the fake device, which it becomes with its memory."""

    def __init__(self, tensorrt: FakeTensorRt, plan: FakePlan) -> None:
        self._tensorrt, self._plan, self._profile = tensorrt, plan, -1
        self._made: FakeContext | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return self._tensorrt._goes("profile")

    def set_device_memory(self, memory: int, size: int) -> None:
        self._made = self._plan.context(self._profile, SimpleNamespace(address=memory, nbytes=size))

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self._tensorrt._goes("shape") and self._do("set_shape", name, shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        return self._tensorrt._goes("address") and self._do("set_address", name, memory)

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        return self._tensorrt._goes("enqueue") and self._do("enqueue")

    def _do(self, name: str, *arguments: Any) -> bool:
        getattr(self._made, name)(*arguments)
        return True


class Runtime:
    """``tensorrt.Runtime`` of :class:`FakeTensorRt`."""

    engine_host_code_allowed: bool | None = None

    def __init__(self, logger: Any, *, tensorrt: FakeTensorRt) -> None:
        self._tensorrt = tensorrt
        tensorrt.log = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        self._tensorrt.host_code.append(self.engine_host_code_allowed)
        if not self._tensorrt._goes("deserialize", "magic tag does not match"):
            return None
        return Engine(self._tensorrt, self._tensorrt.device.load(serialized_engine, "an engine", "a digest"))


class FakeTensorRt:
    """The module ``tensorrt`` or ``tensorrt_rtx``: its runtime, over plans of the fake device.

    ``refuse`` names what fails; ``contexts`` are the strategies or configurations that contexts were made with.
    """

    __version__ = "10.3.0"
    TensorLocation = SimpleNamespace(DEVICE=0, HOST=1)
    ExecutionContextAllocationStrategy = Strategy
    CudaGraphStrategy = Strategy
    DynamicShapesKernelSpecializationStrategy = Strategy

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.log: Any = None
        self.refuse: set[str] = set()
        self.location = 0
        self.host_code: list[bool | None] = []
        self.contexts: list[Strategy | RuntimeConfig] = []
        self.registry = PluginRegistry()

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(logger, tensorrt=self)

    def get_plugin_registry(self) -> PluginRegistry:
        return self.registry

    def _goes(self, name: str, words: str = "") -> bool:
        """Whether what a test may refuse goes well; if not, TensorRT says so."""
        if name in self.refuse:
            self.log.log(2, "a warning")
            self.log.log(1, words or f"{name} was\nrefused.")
        return name not in self.refuse
