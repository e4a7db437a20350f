"""Run on TensorRT's real Python bindings over stub libraries: what the builder and the loader do without a GPU.

``surface.py``, with a module ``tensorrt`` that is the bindings on the path; prints a line for each thing that was
seen to work.
"""

from __future__ import annotations

from pathlib import Path

import tensorrt as trt
from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork

from divprune_edge.errors import DivpruneError
from divprune_edge.runtime.engines import plan
from divprune_edge.runtime.engines.compile import Log, Monitor, SharedWeights, check_graph, register_plugin
from divprune_edge.runtime.engines.graphs import Job
from divprune_edge.runtime.engines.progress import Interrupt

for log in (Log(), plan._make_log(trt)):
    assert isinstance(log, trt.ILogger)
    log.log(trt.ILogger.WARNING, "a warning")
    log.log(trt.ILogger.ERROR, "an error")
    assert "an error" in log.reason()
print("loggers: subclasses of ILogger that keep the error")


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

config = CreateConfig(
    tf32=False,
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
    assert tuple(map(int, trt.__version__.split(".")[:2])) < (10, 14)

try:
    check_graph(Job("x", Path("x.onnx"), (), plugin=False, workspace=None, optimization_level=None))
except DivpruneError as error:
    assert f"TensorRT {trt.__version__} does not start" in str(error)
else:
    raise AssertionError("a builder without TensorRT")
print("builder: without TensorRT behind the bindings, one sentence")

try:
    register_plugin(None)  # type: ignore[arg-type]
except (AttributeError, DivpruneError):
    print("registry: there, and without the plugin")

print(f"TensorRT {trt.__version__}")
