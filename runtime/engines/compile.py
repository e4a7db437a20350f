"""The calls that make an engine: Polygraphy configures and builds, TensorRT parses and describes.

It is imported when a build begins, for the edition that this process builds with. What it uses of either is checked
against the real bindings (``tests/runtime/engines/test_bindings.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, PostprocessConfig
from polygraphy.backend.trt import Profile as PolygraphyProfile
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.profiles import Profile
from divprune_edge.plugins.loader import Library, register
from divprune_edge.runtime.engines.edition import in_use
from divprune_edge.runtime.engines.graphs import BuildJob
from divprune_edge.runtime.engines.log import logger_of, shorten
from divprune_edge.runtime.engines.memory import forget
from divprune_edge.runtime.engines.progress import BuildProgress, Interrupt

EDITION = in_use()
if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = EDITION.load()

_WHO = f"{EDITION.title} {trt.__version__}"
_SILENT = G_LOGGER.CRITICAL + 1
ADVICE = "; 'python -m export check BUNDLE' says more; a bundle of an older release is exported again."
"""The end of the sentence about a graph that cannot be parsed."""


@dataclass(frozen=True)
class Described:
    """What TensorRT says of a plan: JSON about its layers, and memory of a context by optimisation profile."""

    layers: str
    device_memory: tuple[int, ...]


def _log() -> Any:
    return logger_of(trt)


class SharedWeights(PolygraphyProfile):
    """A profile that takes the first one's weights as they lie; by TensorRT's default each may bring its own copies."""

    def to_trt(self, builder: trt.Builder, network: trt.INetworkDefinition) -> trt.IOptimizationProfile:
        """Called by Polygraphy. TensorRT ignores the target in the first profile, and takes it for a hint in others."""
        made: trt.IOptimizationProfile = super().to_trt(builder, network)
        made.extra_memory_target = 0.0
        return made


class Monitor(trt.IProgressMonitor):
    """Passes TensorRT's progress on, and Ctrl-C to TensorRT."""

    def __init__(self, report: BuildProgress, interrupt: Interrupt) -> None:
        super().__init__()
        self._report = report
        self._interrupt = interrupt

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
        """Called by TensorRT, as are the others."""
        self._report.phase(phase_name, parent_phase, int(num_steps))

    def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
        """Return False to end the build."""
        self._report.step(phase_name, int(step))
        return not self._interrupt.seen

    def phase_finish(self, phase_name: str) -> None:
        """Also called for a phase that was cut short."""
        self._report.finished(phase_name)


def register_plugin(library: Library) -> None:
    """Make TensorRT know the plugin, in this process only: plans do not carry it.

    Raises:
        UserError: the library does not fit this TensorRT.
    """
    register(trt.get_plugin_registry(), trt.__version__, library)


def check_graph(job: BuildJob) -> None:
    """Parse a graph and see whether TensorRT knows what to do with every node.

    Raises:
        UserError: it does not; the sentence names the node.
    """
    _parse(job)


def compile_engine(
    job: BuildJob, plan: Path, cache: Path, report: BuildProgress, *, verbose: bool = False
) -> Described | None:
    """Build an engine and write it to ``plan``.

    Returns:
        What TensorRT says of the plan; None of one that was built ahead of time, for only its GPU can load it.

    Raises:
        what `make_engine` raises.
    """
    memory = make_engine(job, cache, report, verbose=verbose)
    with plan.open("wb") as file:
        file.write(memory)
    # Describing the plan loads it once more.
    del memory
    return None if job.sms else _describe(plan)


def make_engine(job: BuildJob, cache: Path | None, report: BuildProgress, *, verbose: bool = False) -> Any:
    """Build an engine and return it, a buffer of bytes.

    Args:
        job: what to build.
        cache: TensorRT's measurements; read if it is there, and written where there are any. What is built ahead of
            time is not timed.
        report: is told about the progress.
        verbose: print what TensorRT says.

    Raises:
        UserError: the graph cannot be parsed.
        DivpruneError: TensorRT finds no engine.
        KeyboardInterrupt: Ctrl-C ended the build.
    """
    parsed = _parse(job, verbose=verbose)
    forget(job.data)
    timings = None if cache is None or job.sms else str(cache)
    with Interrupt() as interrupt, _polygraphy():
        config = _config_for(job.sms)(
            profiles=[_profile(profile) for profile in job.profiles],
            load_timing_cache=str(cache) if cache is not None and cache.is_file() else None,
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
            memory_pool_limits=None
            if job.workspace is None
            else {trt.MemoryPoolType.WORKSPACE: job.workspace},
            builder_optimization_level=job.optimization_level,
            progress_monitor=Monitor(report, interrupt),
        )
        try:
            config = PostprocessConfig(config, _without_tf32)
            memory = EngineBytesFromNetwork(parsed, config=config, save_timing_cache=timings)()
        except PolygraphyException:
            memory = None
    if interrupt.seen:
        raise KeyboardInterrupt
    if memory is None:
        raise DivpruneError(
            f"{_WHO} cannot build an engine from '{job.graph}': {_log().reason()}.",
            code="engine-build-failed",
        )
    return memory


def _parse(
    job: BuildJob, *, verbose: bool = False
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser]:
    log = _log()
    log.begin(verbose=verbose)
    try:
        builder = trt.Builder(log)
    except TypeError as error:
        raise DivpruneError(
            f"{_WHO} does not start: {log.reason()}.", code="tensorrt-not-starting"
        ) from error
    # From 11 on networks know no other way; until then they have to be told that the graph decides on types.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    # By its path, so that the parser finds the external data.
    if not parser.parse_from_file(str(job.graph)) or parser.num_errors:
        raise UserError(
            f"{_WHO} cannot read '{job.graph}': {_parser_errors(parser) or log.reason()}{ADVICE}",
            code="tensorrt-refuses-graph",
        )
    if job.plugin and not _has_plugin(network):
        raise UserError(
            f"{_WHO} did not take the plugin for '{job.graph}' but the slow form that the graph "
            "has for other runtimes: build the plugin for this TensorRT with 'python -m plugins build'.",
            code="tensorrt-ignores-plugin",
        )
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise UserError(
                f"{_WHO} takes the values of input '{tensor.name}' of '{job.graph}' for a shape, "
                "which no profile covers: a bundle of an older release is exported again.",
                code="graph-shape-input",
            )
    _let_attention_split(network)
    return builder, network, parser


def _let_attention_split(network: trt.INetworkDefinition) -> None:
    """Allow attention in several kernels: as parsed, TensorRT refuses where it has no single one for it.

    That is so for float32, and for head sizes or lengths that its fused kernels lack on a GPU. The ONNX node could say
    it with an attribute, which no other runtime accepts. TensorRT before 10.14 knows neither node nor layer.
    """
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)
    for index in range(network.num_layers if kind is not None else 0):
        layer: Any = network.get_layer(index)
        if layer.type == kind:
            # The bindings hand every layer out as the base class.
            layer.__class__ = getattr(trt, "IAttentionInputLayer", None)
            layer.attention.decomposable = True


def _parser_errors(parser: trt.OnnxParser) -> str:
    """Return the first error with the node that it is about."""
    if not parser.num_errors:
        return ""
    error: trt.ParserError = parser.get_error(0)
    name, operator = error.node_name(), error.node_operator()
    where = f"node '{name}' ({operator}): " if name or operator else ""
    return f"{where}{shorten(error.desc())}"


def _has_plugin(network: trt.INetworkDefinition) -> bool:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return any(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)


def _profile(profile: Profile) -> PolygraphyProfile:
    made = SharedWeights()
    for name, shapes in profile.items():
        made.add(name, min=shapes.min, opt=shapes.opt, max=shapes.max)
    return made


def _config_for(sms: tuple[int, ...]) -> Callable[..., Any]:
    """Return what makes a configuration for these GPUs, all of which one engine serves; for none, the one here."""
    make: Callable[..., Any] = CreateConfig
    if sms:
        try:
            from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
        except ImportError as error:
            raise UserError(
                "Polygraphy 0.53 or newer is needed: 'python -m pip install --upgrade polygraphy'.",
                code="polygraphy-too-old",
            ) from error
        make = partial(CreateConfigRTX, compute_capabilities=[divmod(sm, 10) for sm in sms])
    return make


def _without_tf32(builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
    """Float32 is float32: another rounding would pick other tokens."""
    config.clear_flag(trt.BuilderFlag.TF32)


def _describe(plan: Path) -> Described:
    """Load the plan that was just built, which also shows that it loads."""
    runtime = trt.Runtime(_log())
    with plan.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped:
        engine = runtime.deserialize_cuda_engine(mapped)
    if engine is None:
        raise DivpruneError(
            f"{_WHO} cannot load the engine that it built: {_log().reason()}.", code="engine-not-loaded"
        )
    count = engine.num_optimization_profiles
    inspector = engine.create_engine_inspector()
    return Described(
        inspector.get_engine_information(trt.LayerInformationFormat.JSON),
        tuple(int(engine.get_device_memory_size_for_profile_v2(index)) for index in range(count)),
    )


@contextmanager
def _polygraphy() -> Iterator[None]:
    """Let Polygraphy print nothing: its exceptions and TensorRT's log say it."""
    with G_LOGGER.verbosity(_SILENT):
        yield
