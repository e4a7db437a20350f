"""TensorRT where there is no GPU: TensorRT-RTX under the name ``tensorrt``, and FAKES of what it cannot do here.

What this file does not define is TensorRT-RTX's own: enums, networks, configurations, profiles, what the parser says
of a graph, and the engines, which are really built. Fake are

- the runtime with what it hands out, because loading an engine needs a GPU,
- the plugin registry and a layer of the network, because TensorRT-RTX ends the process where its parser meets a
  registered plugin: with the library "loaded", the parser reads the file with the local function in its place, and the
  network shows one plugin layer more,
- the version, the GPU that is built for, and a builder that does not start.

``tests/runtime/engines/test_fakes.py`` holds them to the signatures of the real bindings.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import tensorrt_rtx as real
from fake_cuda import PluginRegistry

from divprune_edge.models.tensorrt import parse_version
from divprune_edge.plugins.loader import PLUGIN
from divprune_edge.runtime.engines import log

VERSION = "10.3.0"


@dataclass(frozen=True)
class Built:
    """An engine, and what the builder was told about it."""

    graph: Path
    sha256: str
    strongly_typed: bool
    tf32: bool
    verbosity: str
    workspace: int
    level: int
    decomposable: tuple[bool, ...]
    extra_memory: tuple[float, ...]


class World:
    """What a test sets up and looks at."""

    def __init__(self, version: str = VERSION) -> None:
        self.version, self.starts = version, True
        self.capability = "SM89"
        """What is built for; sm_87 is none of TensorRT-RTX's, and for SM75 it has no product of float32 matrices."""
        self.registry = PluginRegistry()
        self.built: list[Built] = []
        self.timings: list[bytes] = []
        """What timing caches were made from."""
        self.deserialized = 0


class PluginLayer:
    """Where the network has the function's layers."""

    type = real.LayerType.PLUGIN_V3


class Network:
    """A real network, and maybe the plugin's layer."""

    def __init__(self, made: Any, flags: int) -> None:
        self._real, self._flags, self._graph, self._plugin = made, flags, Path(), False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __iter__(self) -> Iterator[Any]:
        return map(self.get_layer, range(self.num_layers))

    @property
    def num_layers(self) -> int:
        return int(self._real.num_layers) + self._plugin

    def get_layer(self, index: int) -> Any:
        return PluginLayer() if index == self._real.num_layers else self._real.get_layer(index)


class EngineInspector:
    def __init__(self, built: Built) -> None:
        self._built = built

    def get_engine_information(self, format: Any) -> str:
        assert format == real.LayerInformationFormat.JSON
        return json.dumps({"Layers": [{"Name": str(self._built.graph)}], "Bindings": []})


class CudaEngine:
    def __init__(self, built: Built) -> None:
        self._built = built

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._built.extra_memory)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._built)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1000 * (self.num_optimization_profiles - profile_index)


def make_module(world: World) -> ModuleType:
    """Return a module ``tensorrt`` of ``world``."""

    class Builder(real.Builder):  # type: ignore[misc]
        """The real one, which is told what to build for and remembers what it was given."""

        def __init__(self, logger: Any) -> None:
            if not world.starts:
                logger.log(real.ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            super().__init__(logger)
            self._profiles: list[Any] = []

        def create_network(self, flags: int = 0) -> Network:
            return Network(super().create_network(flags), flags)

        def create_builder_config(self) -> Any:
            config = super().create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(real.ComputeCapability, world.capability), 0)
            return config

        def create_optimization_profile(self) -> Any:
            self._profiles.append(super().create_optimization_profile())
            return self._profiles[-1]

        def build_serialized_network(self, network: Network, config: Any) -> Any:
            engine = super().build_serialized_network(network._real, config)
            if engine is not None:
                world.built.append(self._describe(network, config, bytes(engine)))
            return engine

        def _describe(self, network: Network, config: Any, engine: bytes) -> Built:
            attention = [layer for layer in network if layer.type == real.LayerType.ATTENTION_INPUT]
            for layer in attention:
                layer.__class__ = real.IAttentionInputLayer
            return Built(
                graph=network._graph,
                sha256=hashlib.sha256(engine).hexdigest(),
                strongly_typed=bool(network._flags >> int(_flag.STRONGLY_TYPED) & 1),
                tf32=config.get_flag(real.BuilderFlag.TF32),
                verbosity=config.profiling_verbosity.name,
                workspace=config.get_memory_pool_limit(real.MemoryPoolType.WORKSPACE),
                level=config.builder_optimization_level,
                decomposable=tuple(layer.attention.decomposable for layer in attention),
                extra_memory=tuple(profile.extra_memory_target for profile in self._profiles),
            )

    class OnnxParser(real.OnnxParser):  # type: ignore[misc]
        """The real one, which does not meet the plugin's node."""

        def __init__(self, network: Network, logger: Any) -> None:
            super().__init__(network._real, logger)
            self._network = network

        def parse_from_file(self, model: str) -> bool:
            path = self._network._graph = Path(model)
            if world.registry.loaded and has_plugin(path, world.version):
                self._network._plugin = True
                path = path.parent.parent / path.name if path.parent.name == "stripped" else path
            return bool(super().parse_from_file(str(path)))

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: Any) -> CudaEngine | None:
            world.deserialized += 1
            sha256 = hashlib.sha256(serialized_engine).hexdigest()
            return next((CudaEngine(built) for built in world.built if built.sha256 == sha256), None)

    module = ModuleType("tensorrt")
    module.__getattr__ = lambda name: getattr(real, name)  # type: ignore[method-assign]
    for name, value in {
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "Runtime": Runtime,
        "get_plugin_registry": lambda: world.registry,
        "__version__": world.version,
    }.items():
        setattr(module, name, value)
    return module


_flag = real.NetworkDefinitionCreationFlag


def has_plugin(path: Path, version: str) -> bool:
    """Whether this TensorRT takes the plugin for a node of a graph; up to 10.6 a local function comes first."""
    model = onnx.load(path, load_external_data=False)
    plain_first = parse_version(version) <= (10, 6) and model.functions
    return not plain_first and any(node.op_type == PLUGIN[0] for node in model.graph.node)


def install(world: World, monkeypatch: Any) -> None:
    """Make ``import tensorrt`` give the stand-in."""
    monkeypatch.setitem(sys.modules, "tensorrt", make_module(world))
    # Below there is one TensorRT, which speaks to one logger.
    voice = log.logger_of(real)
    monkeypatch.setattr(log, "logger_of", lambda module: voice)
    create = real.IBuilderConfig.create_timing_cache

    def remember(config: Any, serialized_timing_cache: bytes) -> Any:
        world.timings.append(serialized_timing_cache)
        return create(config, serialized_timing_cache)

    monkeypatch.setattr(real.IBuilderConfig, "create_timing_cache", remember)
