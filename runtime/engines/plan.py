"""Plans as TensorRT runs them. Nothing here builds one, and no host code of a plan is ever run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from divprune_edge.errors import DivpruneError
from divprune_edge.models.tensorrt import Edition
from divprune_edge.plugins.loader import Library, register
from divprune_edge.runtime.engines.finish import finish_on_the_card
from divprune_edge.runtime.engines.log import logger_of

if TYPE_CHECKING:
    from divprune_edge.models.profiles import Shape
    from divprune_edge.runtime.engines.device import Memory


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
            raise DivpruneError(
                f"TensorRT did not accept the engine of {title} ({self._log.reason()}).",
                code="engine-not-loaded",
            )
        location = self._tensorrt.TensorLocation.DEVICE
        result = TensorRtPlan(self, engine, title, key)
        for name in result.names:
            if engine.get_tensor_location(name) != location:
                raise DivpruneError(
                    f"The engine of {title} wants '{name}' in host memory, which this backend does not do.",
                    code="engine-host-memory",
                )
        return result

    def make_context(
        self, engine: Any, title: str, key: str, profile: int, scratch: Memory, varying: bool
    ) -> TensorRtContext:
        """Make an execution context whose activations lie in ``scratch``."""
        how = self._tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._edition.ahead_of_time:
            how = finish_on_the_card(self._tensorrt, engine, how, key, varying=varying)
        context = engine.create_execution_context(how)
        if context is None or not context.set_optimization_profile_async(profile, self._stream):
            raise DivpruneError(
                f"TensorRT made no context for the engine of {title} ({self._log.reason()}).",
                code="engine-failed",
            )
        self._synchronize()
        context.set_device_memory(scratch.address, scratch.nbytes)
        return TensorRtContext(context, scratch, self._stream, f"the engine of {title}", self._log)


class TensorRtPlan:
    """A deserialised engine."""

    def __init__(self, plans: Plans, engine: Any, title: str, key: str) -> None:
        self._plans, self._engine, self._title, self._key = plans, engine, title, key

    @cached_property
    def names(self) -> Sequence[str]:
        """See :class:`~divprune_edge.runtime.engines.device.Plan`, also for what follows."""
        return [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]

    def shape(self, name: str) -> Shape:
        """TensorRT has -1 as well where a dimension varies."""
        return tuple(self._engine.get_tensor_shape(name))

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

    def context(self, profile: int, scratch: Memory, *, varying: bool = False) -> TensorRtContext:
        """Make a context."""
        how = profile, scratch, varying
        return self._plans.make_context(self._engine, self._title, self._key, *how)


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
                f"TensorRT refused the shape {list(shape)} of '{name}' in {self._title} ({self._log.reason()}).",
                code="engine-failed",
            )

    def set_address(self, name: str, address: int) -> None:
        """Bind a tensor."""
        if not self._context.set_tensor_address(name, address):
            raise DivpruneError(
                f"TensorRT refused to bind '{name}' of {self._title} ({self._log.reason()}).",
                code="engine-failed",
            )

    def enqueue(self) -> None:
        """``execute_async_v3``."""
        if not self._context.execute_async_v3(self._stream):
            raise DivpruneError(
                f"TensorRT could not run {self._title} ({self._log.reason()}).", code="engine-failed"
            )
