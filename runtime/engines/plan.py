"""Plans as TensorRT runs them. Nothing here builds one, and no host code of a plan is ever run."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune_edge.errors import DivpruneError
from divprune_edge.plugins.loader import Library, register
from divprune_edge.runtime.bundle import cache_folder
from divprune_edge.runtime.engines.edition import Edition
from divprune_edge.runtime.engines.log import logger_of
from divprune_edge.runtime.engines.profiles import PREFILL

if TYPE_CHECKING:
    from divprune_edge.runtime.engines.device import Memory, Shape


class Plans:
    """TensorRT's runtime, on one stream.

    Args:
        stream: a ``cudaStream_t`` as an integer.
        synchronize: waits for it.
        edition: of TensorRT.

    Raises:
        UserError: TensorRT's Python bindings are not there.
    """

    def __init__(self, stream: int, synchronize: Callable[[], None], edition: Edition) -> None:
        self._tensorrt = edition.load()
        self._stream, self._synchronize, self._edition = stream, synchronize, edition
        self._log = logger_of(self._tensorrt)
        self._runtime = self._tensorrt.Runtime(self._log)
        # The default, but not one to rely on: a plan with host code is a program.
        self._runtime.engine_host_code_allowed = False

    def load(self, plan: Any, title: str, key: str, library: Library | None) -> TensorRtPlan:
        """See :meth:`divprune_edge.runtime.engines.device.Device.load`."""
        if library is not None:
            register(self._tensorrt.get_plugin_registry(), self._tensorrt.__version__, library)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise DivpruneError(f"TensorRT did not accept the engine of {title} ({self._log.reason()}).")
        location = self._tensorrt.TensorLocation.DEVICE
        result = TensorRtPlan(self, engine, title, key)
        for name in result.names:
            if engine.get_tensor_location(name) != location:
                raise DivpruneError(
                    f"The engine of {title} wants '{name}' in host memory, which this backend does not do."
                )
        return result

    def make_context(
        self, engine: Any, title: str, key: str, profile: int, scratch: Memory
    ) -> TensorRtContext:
        """Make an execution context whose activations lie in ``scratch``."""
        how = self._tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._edition.ahead_of_time:
            how = self._finishing(engine, profile, how, _kernels_path(key, profile))
        context = engine.create_execution_context(how)
        if context is None or not context.set_optimization_profile_async(profile, self._stream):
            raise DivpruneError(f"TensorRT made no context for the engine of {title} ({self._log.reason()}).")
        self._synchronize()
        context.set_device_memory(scratch.address, scratch.nbytes)
        return TensorRtContext(context, scratch, self._stream, f"the engine of {title}", self._log)

    def _finishing(self, engine: Any, profile: int, allocation: Any, path: Path | None) -> Any:
        """Return how TensorRT-RTX makes the kernels of an engine that was built ahead of time.

        Kernels for the shapes at hand are made before they are first used, so that a CUDA graph of a decode step holds
        them and not the slower ones that serve all shapes; but for prefill, where every length of a prompt is another
        shape, in the background. TensorRT-RTX captures nothing itself: the step that we capture has copies in it, too.
        What was made is kept in this user's cache folder, as code that no bundle brings along.
        """
        runtime_config = engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(allocation)
        strategies = self._tensorrt.DynamicShapesKernelSpecializationStrategy
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            strategies.LAZY if profile == PREFILL else strategies.EAGER
        )
        runtime_config.cuda_graph_strategy = self._tensorrt.CudaGraphStrategy.DISABLED
        if path is not None:
            runtime_cache = runtime_config.create_runtime_cache()
            with suppress(OSError):
                runtime_cache.deserialize(path.read_bytes())
            runtime_config.set_runtime_cache(runtime_cache)
            weakref.finalize(engine, _keep_kernels, runtime_cache, path)
        return runtime_config


def _kernels_path(key: str, profile: int) -> Path | None:
    """Return where the kernels of an engine are kept; None where this user has no home."""
    try:
        return cache_folder() / "kernels" / f"{key}-{profile}.bin"
    except RuntimeError:
        return None


def _keep_kernels(runtime_cache: Any, path: Path) -> None:
    """Write what was made; a cache that cannot be written only costs the next start its time."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_bytes(bytes(runtime_cache.serialize()))
        temporary.replace(path)


class TensorRtPlan:
    """A deserialised engine."""

    def __init__(self, plans: Plans, engine: Any, title: str, key: str) -> None:
        self._plans, self._engine, self._title, self._key = plans, engine, title, key

    @cached_property
    def names(self) -> Sequence[str]:
        """See :class:`~divprune_edge.runtime.engines.device.Plan`, also for what follows."""
        return [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    @property
    def profiles(self) -> int:
        """Number of optimisation profiles."""
        return int(self._engine.num_optimization_profiles)

    @property
    def scratch_bytes(self) -> int:
        """The largest of all profiles."""
        return int(self._engine.device_memory_size_v2)

    def limits(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """First and last of TensorRT's smallest, usual and largest shape."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(smallest), tuple(largest)

    def context(self, profile: int, scratch: Memory) -> TensorRtContext:
        """Make a context."""
        return self._plans.make_context(self._engine, self._title, self._key, profile, scratch)


class TensorRtContext:
    """An execution context on the device's stream."""

    def __init__(self, context: Any, scratch: Memory, stream: int, title: str, log: Any) -> None:
        self._context, self._stream, self._title, self._log = context, stream, title, log
        # TensorRT knows the address alone.
        self._scratch = scratch

    def set_shape(self, name: str, shape: Shape) -> None:
        """See :class:`~divprune_edge.runtime.engines.device.Context`, also for what follows."""
        if not self._context.set_input_shape(name, shape):
            raise DivpruneError(
                f"TensorRT refused the shape {list(shape)} of '{name}' in {self._title} ({self._log.reason()})."
            )

    def set_address(self, name: str, address: int) -> None:
        """Bind a tensor."""
        if not self._context.set_tensor_address(name, address):
            raise DivpruneError(f"TensorRT refused to bind '{name}' of {self._title} ({self._log.reason()}).")

    def enqueue(self) -> None:
        """``execute_async_v3``."""
        if not self._context.execute_async_v3(self._stream):
            raise DivpruneError(f"TensorRT could not run {self._title} ({self._log.reason()}).")
