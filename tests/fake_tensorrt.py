"""A stand-in for the module ``tensorrt``: it builds nothing, and keeps its caller to the rules of the real one.

A "graph" is a JSON file (see ``engine_bundles``) or a real ONNX file, a "plan" is JSON that says what it was built from
and how; of a real graph it is one that ``fake_device`` runs. Names
and signatures are those of the real bindings, which ``tests/runtime/engines/test_bindings.py`` holds the callers to;
Polygraphy runs on this as it is.
"""

from __future__ import annotations

import enum
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx

VERSION = "10.3.0"


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.IntEnum):
    FP16 = 0
    TF32 = 7


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0
    DLA_MANAGED_SRAM = 1


class ProfilingVerbosity(enum.IntEnum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class LayerInformationFormat(enum.IntEnum):
    ONELINE = 0
    JSON = 1


class LayerType(enum.IntEnum):
    SHAPE = 1
    MATRIX_MULTIPLY = 2
    PLUGIN_V3 = 3


class NewLayerType(enum.IntEnum):
    """The same from 10.14 on."""

    SHAPE = 1
    MATRIX_MULTIPLY = 2
    PLUGIN_V3 = 3
    ATTENTION_INPUT = 4


class PreviewFeature(enum.IntEnum):
    PROFILE_SHARING_0806 = 0


class QuantizationFlag(enum.IntEnum):
    CALIBRATE_BEFORE_FUSION = 0


class TacticSource(enum.IntEnum):
    CUBLAS = 0


class DeviceType(enum.IntEnum):
    GPU = 0
    DLA = 1


class EngineCapability(enum.IntEnum):
    STANDARD = 0


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    """What a builder tells; its methods must all be there."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class Registry:
    """The plugin registry; accepts any file that is there."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load_library(self, plugin_path: str) -> object | None:
        self.loaded.append(plugin_path)
        return object() if Path(plugin_path).is_file() else None

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object | None:
        wanted = (type, version, plugin_namespace)
        return next(
            (c for c in self.all_creators if (c.name, c.plugin_version, c.plugin_namespace) == wanted), None
        )

    @property
    def all_creators(self) -> list[Any]:
        creator = SimpleNamespace(name="MaxMinDiversity", plugin_version="1", plugin_namespace="")
        return [creator] if self.loaded else []


class World:
    """What a test sets up and looks at."""

    def __init__(self, version: str = VERSION) -> None:
        self.version = version
        self.registry = Registry()
        self.on_step: Callable[[int], None] = lambda step: None
        self.parse_errors: dict[str, tuple[str, str, str]] = {}
        self.build_error = ""
        self.starts = True
        self.parsed: list[str] = []
        self.built: list[dict[str, Any]] = []
        self.deserialized = 0

    @property
    def timed(self) -> list[str]:
        """Graphs that were built without a timing from the cache."""
        return [Path(plan["graph"]).name for plan in self.built if not plan["from_cache"]]


class Tensor:
    def __init__(self, name: str, shape: list[int], values: bool) -> None:
        self.name, self.shape, self.dtype, self.is_shape_tensor = name, tuple(shape), "float32", values


class Layer:
    def __init__(self, type: enum.IntEnum) -> None:
        self.type, self.name, self.precision_is_set = type, type.name, False


class Attention:
    decomposable = False


class IAttentionInputLayer(Layer):
    """What a layer of that type has to be told to be, before it shows its attention."""

    @property
    def attention(self) -> Attention:
        return self._attention  # type: ignore[attr-defined, no-any-return]


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.graph = ""
        self.inputs: list[Tensor] = []
        self.layers: list[Layer] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        return bool(self.flags >> int(flag) & 1)

    def __iter__(self) -> Any:
        return iter(self.layers)


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        self.extra_memory_target = 1.0

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = {"min": tuple(min), "opt": tuple(opt), "max": tuple(max)}


class HostMemory(bytes):
    def __enter__(self) -> HostMemory:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class TimingCache:
    """Names of the graphs that were timed."""

    def __init__(self, serialized: bytes) -> None:
        self.names: set[str] = set(json.loads(serialized)) if serialized else set()

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.names |= input_cache.names
        return True

    def serialize(self) -> HostMemory:
        return HostMemory(json.dumps(sorted(self.names)).encode())


class BuilderConfig:
    def __init__(self) -> None:
        self.flags = {BuilderFlag.TF32}
        self.profiles: list[OptimizationProfile] = []
        self.pools: dict[MemoryPoolType, int] = {}
        self.cache: TimingCache | None = None
        self.progress_monitor: IProgressMonitor | None = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3
        self.DLA_core, self.default_device_type = -1, DeviceType.GPU
        self.engine_capability = EngineCapability.STANDARD
        self.int8_calibrator = None

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self.flags

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: MemoryPoolType) -> int:
        return self.pools.get(pool, 0)

    def get_tactic_sources(self) -> int:
        return 1

    def get_preview_feature(self, feature: PreviewFeature) -> bool:
        return True

    def get_quantization_flag(self, flag: QuantizationFlag) -> bool:
        return False

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


def make_module(world: World) -> ModuleType:
    """Return a module ``tensorrt`` of ``world``."""
    module = ModuleType("tensorrt")

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            if not world.starts:
                logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.logger = logger

        def create_network(self, flags: int = 0) -> Network:
            return Network(flags)

        def create_builder_config(self) -> BuilderConfig:
            return BuilderConfig()

        def create_optimization_profile(self) -> OptimizationProfile:
            return OptimizationProfile()

        def build_serialized_network(self, network: Network, config: BuilderConfig) -> HostMemory | None:
            for profile in config.profiles:
                check_profile(network, profile)
            if not run_phases(config.progress_monitor):
                return None
            if world.build_error:
                self.logger.log(ILogger.ERROR, "a tactic that was passed over")
                self.logger.log(ILogger.ERROR, world.build_error)
                self.logger.log(ILogger.ERROR, "what follows from it.")
                return None
            assert config.cache is not None
            plan = {
                "graph": network.graph,
                "file": network.graph,
                "tensorrt": world.version,
                "decomposable": [
                    layer._attention.decomposable  # type: ignore[attr-defined]
                    for layer in network.layers
                    if layer.type == NewLayerType.ATTENTION_INPUT
                ],
                "strongly_typed": network.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED),
                "tf32": config.get_flag(BuilderFlag.TF32),
                "verbosity": config.profiling_verbosity.name,
                "workspace": config.pools.get(MemoryPoolType.WORKSPACE),
                "level": config.builder_optimization_level,
                "from_cache": network.graph in config.cache.names,
                "profiles": [profile.shapes for profile in config.profiles],
                "extra_memory": [profile.extra_memory_target for profile in config.profiles],
            }
            config.cache.names.add(network.graph)
            world.built.append(plan)
            return HostMemory(json.dumps(plan).encode())

    def run_phases(monitor: IProgressMonitor | None) -> bool:
        """Report two nested phases; False if the build was cancelled."""
        assert monitor is not None
        monitor.phase_start("Building", None, 3)
        monitor.phase_start("Timing", "Building", 1)
        monitor.step_complete("Timing", 0)
        monitor.phase_finish("Timing")
        going = True
        for step in range(3):
            world.on_step(step)
            going = going and monitor.step_complete("Building", step)
        monitor.phase_finish("Building")
        return going

    class ParserError:
        def __init__(self, name: str, operator: str, desc: str) -> None:
            self._parts = name, operator, desc

        def node_name(self) -> str:
            return self._parts[0]

        def node_operator(self) -> str:
            return self._parts[1]

        def desc(self) -> str:
            return self._parts[2]

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            self._network, self._errors = network, []  # type: ignore[var-annotated]

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return ParserError(*self._errors[index])

        def parse_from_file(self, model: str) -> bool:
            world.parsed.append(Path(model).name)
            error = world.parse_errors.get(Path(model).name)
            if error is not None:
                self._errors.append(error)
                return False
            graph = read_graph(Path(model))
            self._network.graph = model
            self._network.inputs = [
                Tensor(name, shape, name in graph["shapes"]) for name, shape in graph["inputs"].items()
            ]
            self._network.layers = [Layer(LayerType.MATRIX_MULTIPLY)]
            plain_first = version_of(world) <= (10, 6) and graph["function"]
            for _ in range(graph.get("attention", 0)):
                layer = Layer(NewLayerType.ATTENTION_INPUT)
                layer._attention = Attention()  # type: ignore[attr-defined]
                self._network.layers.append(layer)
            if graph["plugin"] and world.registry.loaded and not plain_first:
                self._network.layers.append(Layer(LayerType.PLUGIN_V3))
            return True

    class EngineInspector:
        def __init__(self, plan: dict[str, Any]) -> None:
            self._plan = plan

        def get_engine_information(self, format: LayerInformationFormat) -> str:
            assert format == LayerInformationFormat.JSON
            return json.dumps({"Layers": [{"Name": self._plan["graph"]}], "Bindings": []})

    class CudaEngine:
        def __init__(self, plan: dict[str, Any]) -> None:
            self._plan = plan
            self.num_optimization_profiles = len(plan["profiles"])

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self._plan)

        def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
            return 1000 * (self.num_optimization_profiles - profile_index)

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            pass

        def deserialize_cuda_engine(self, serialized_engine: Any) -> CudaEngine | None:
            world.deserialized += 1
            try:
                return CudaEngine(json.loads(bytes(serialized_engine)))
            except ValueError:
                return None

    for thing in (
        *(NetworkDefinitionCreationFlag, BuilderFlag, MemoryPoolType, ProfilingVerbosity, LayerType),
        *(LayerInformationFormat, PreviewFeature, QuantizationFlag, TacticSource, DeviceType),
        *(EngineCapability, ILogger, IProgressMonitor, Builder, OnnxParser, Runtime),
        IAttentionInputLayer,
    ):
        setattr(module, thing.__name__, thing)
    module.__version__ = world.version  # type: ignore[attr-defined]
    if version_of(world) >= (10, 14):
        module.LayerType = NewLayerType  # type: ignore[attr-defined]
    module.Logger = ILogger  # type: ignore[attr-defined]
    module.get_plugin_registry = lambda: world.registry  # type: ignore[attr-defined]
    return module


def version_of(world: World) -> tuple[int, int]:
    major, minor = world.version.split(".")[:2]
    return int(major), int(minor)


def read_graph(path: Path) -> dict[str, Any]:
    """Return the inputs of a graph, and whether it has the plugin's node and a local function."""
    if path.read_bytes()[:1] == b"{":
        return dict(json.loads(path.read_text(encoding="utf-8")))
    model = onnx.load(path, load_external_data=False)
    return {
        "inputs": {
            one.name: [size.dim_value or -1 for size in one.type.tensor_type.shape.dim]
            for one in model.graph.input
        },
        "shapes": [],
        "plugin": any(node.op_type == "MaxMinDiversity" for node in model.graph.node),
        "function": bool(model.functions),
        "attention": sum(node.op_type == "Attention" for node in model.graph.node),
    }


def check_profile(network: Network, profile: OptimizationProfile) -> None:
    """Refuse what TensorRT refuses: an input without shapes, shapes out of order or against the graph."""
    assert set(profile.shapes) == {tensor.name for tensor in network.inputs}
    for tensor in network.inputs:
        least, typical, most = (profile.shapes[tensor.name][end] for end in ("min", "opt", "max"))
        for size, low, usual, high in zip(tensor.shape, least, typical, most, strict=True):
            assert 0 < low <= usual <= high, tensor.name
            assert size == -1 or low == high == size, tensor.name


def install(world: World, monkeypatch: Any) -> ModuleType:
    """Make ``import tensorrt`` give the stand-in, to Polygraphy as well, and forget what was imported with another."""
    module = make_module(world)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    package = importlib.import_module("divprune_edge.runtime.engines")
    monkeypatch.delitem(sys.modules, f"{package.__name__}.compile", raising=False)
    monkeypatch.delattr(package, "compile", raising=False)
    for name in [name for name in sys.modules if name == "polygraphy" or name.startswith("polygraphy.")]:
        monkeypatch.delitem(sys.modules, name)
    return module
