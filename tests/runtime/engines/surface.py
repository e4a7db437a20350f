"""Run on the real Python bindings: TensorRT's over stub libraries, TensorRT-RTX's as they are.

``surface.py``, for the edition that the environment names; prints a line for each thing of the builder and the loader
that was seen to work without a GPU.
"""

from __future__ import annotations

from pathlib import Path

from polygraphy.backend.trt import EngineBytesFromNetwork

from divprune_edge.errors import DivpruneError
from divprune_edge.runtime.engines.compile import (
    Monitor,
    SharedWeights,
    _config_for,
    check_graph,
    register_plugin,
)
from divprune_edge.runtime.engines.edition import in_use
from divprune_edge.runtime.engines.graphs import BuildJob
from divprune_edge.runtime.engines.log import logger_of
from divprune_edge.runtime.engines.progress import Interrupt

edition = in_use()
trt = edition.load()
log = logger_of(trt)
assert isinstance(log, trt.ILogger)
assert logger_of(trt) is log
log.log(trt.ILogger.WARNING, "a warning")
log.log(trt.ILogger.ERROR, "an error")
assert log.reason() == "an error"
assert log.reason() == "it gives no reason"
print("logger: a subclass of ILogger that keeps the error, one for the process")


class Report:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def phase(self, *told: object) -> None:
        """Also for what follows."""
        self.told.append(told)

    step = finished = phase


class Pressed(Interrupt):
    """As if Ctrl-C was pressed."""

    seen = True  # type: ignore[assignment]


report = Report()
with Interrupt() as interrupt:
    monitor = Monitor(report, interrupt)  # type: ignore[arg-type]
    assert isinstance(monitor, trt.IProgressMonitor)
    monitor.phase_start("Building", None, 3)
    assert monitor.step_complete("Building", 0) is True
    monitor.phase_finish("Building")
assert Monitor(report, Pressed()).step_complete("Building", 1) is False  # type: ignore[arg-type]
assert report.told[:3] == [("Building", None, 3), ("Building", 0), ("Building",)]
print("monitor: a subclass of IProgressMonitor that goes on, and stops")

config = _config_for((89, 120) if edition.ahead_of_time else ())(
    profiles=[SharedWeights().add("x", (1,), (1,), (1,))],
    profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
    memory_pool_limits={trt.MemoryPoolType.WORKSPACE: 1 << 20},
    builder_optimization_level=3,
    progress_monitor=monitor,
)
EngineBytesFromNetwork((None, None), config=config, save_timing_cache="timing.cache")
assert trt.IOptimizationProfile.extra_memory_target.fset is not None
print("Polygraphy: takes this TensorRT, and every option")

if hasattr(trt.LayerType, "ATTENTION_INPUT"):
    assert issubclass(trt.IAttentionInputLayer, trt.ILayer)
    assert isinstance(trt.IAttentionInputLayer.attention, property)
    assert trt.IAttention.decomposable.fset is not None
    print("attention: a layer of that type shows one that may be split")
else:
    assert not edition.ahead_of_time
    assert tuple(map(int, trt.__version__.split(".")[:2])) < (10, 14)

try:
    check_graph(BuildJob("x", Path("x.onnx"), (), plugin=False, workspace=None, optimization_level=None))
except DivpruneError as error:
    begins = "cannot read 'x.onnx': " if edition.ahead_of_time else "does not start"
    assert str(error).startswith(f"{edition.title} {trt.__version__} {begins}"), error
else:
    raise AssertionError("a graph that is not there")
print("builder: what it cannot do is one sentence")

try:
    register_plugin(None)  # type: ignore[arg-type]
except (AttributeError, DivpruneError):
    print("registry: there, and without the plugin")

if edition.ahead_of_time:
    assert trt.ICudaEngine.__weakrefoffset__
    print("engine: what was made for it can be kept when it goes")

print(f"{edition.title} {trt.__version__}")
