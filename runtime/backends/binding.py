"""What the runs of an ONNX Runtime session read and write, bound by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import DivpruneError
from divprune_edge.runtime.backends.captured import (
    CHECKED_RUNS,
    HOST_INPUTS,
    check_replay,
    run_options,
    warn_of,
)
from divprune_edge.runtime.backends.memory import TYPES, DeviceMemory, TensorSpan, reason_of, run_bound


class Binding:
    """Inputs and outputs of a session; what is bound stays bound until it is bound anew, and lives as long.

    A ``steady`` one has buffers that stay where they are: arrays of the host are copied into them, and out of them.
    Then CUDA can replay a run, if the backend wants that (:mod:`~divprune_edge.runtime.backends.captured`).
    """

    def __init__(self, session: ort.InferenceSession, memory: DeviceMemory, *, steady: bool = False) -> None:
        self._session, self._memory = session, memory
        self._steady = steady
        self._graph: int | None = None
        self._thread = 0
        self._checks = CHECKED_RUNS
        self._landed: dict[str, npt.NDArray[Any]] = {}
        self._binding = session.io_binding()
        self._held: dict[str, Any] = {}
        self._on_host: dict[str, int] = {}
        # In the order in which they were bound first, which is that of ONNX Runtime's.
        self._outputs: dict[str, None] = {}

    def input(self, name: str, value: ort.OrtValue) -> None:
        """Bind a tensor where it lies; a graph that was captured knows another place."""
        self._graph = None
        self._held[name] = value
        self._binding.bind_ortvalue_input(name, value)

    def array(self, name: str, value: npt.NDArray[Any]) -> None:
        """Bind an array of the host, which is handed to the graph here."""
        self._memory.traffic.to_device += value.nbytes
        if not self._steady:
            self.input(name, ort.OrtValue.ortvalue_from_numpy(value))
            return
        held = self._held.get(name)
        if held is None or held.shape() != list(value.shape):
            held = self._memory.empty(value.shape, value.dtype.name, on_host=name in HOST_INPUTS)
            self.input(name, held)
        held.update_inplace(np.ascontiguousarray(value))

    def arrays(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Bind several."""
        for name, value in values.items():
            self.array(name, value)

    def fed(self, values: Mapping[str, Any]) -> None:
        """Bind tensors of the device and arrays of the host."""
        for name, value in values.items():
            if isinstance(value, ort.OrtValue):
                self.input(name, value)
            else:
                self.array(name, value)

    def place(
        self, span: TensorSpan, shape: Sequence[int], *, source: str, target: str | None = None
    ) -> None:
        """Bind a part of a tensor as an input, and as an output that is written in the same place."""
        where = self._memory.device, 0, TYPES[span.dtype], tuple(shape), span.address
        self._held[source] = span
        self._binding.bind_input(source, *where)
        if target is not None:
            self._outputs[target] = None
            self._binding.bind_output(target, *where)

    def output(self, name: str, value: ort.OrtValue) -> None:
        """Bind a tensor that an output is written to."""
        self._graph = None
        self._held[name] = value
        self._outputs[name] = None
        self._binding.bind_ortvalue_output(name, value)

    def landing(self, name: str, array: npt.NDArray[Any]) -> None:
        """Bind an array of the host that an output is written to."""
        if self._steady:
            self._landed[name] = array
            self.output(name, self._memory.empty(array.shape, array.dtype.name))
            return
        self._on_host[name] = array.nbytes
        self.output(name, ort.OrtValue.ortvalue_from_numpy(array))

    def run(self) -> None:
        """Run on what is bound.

        Raises:
            DivpruneError: ONNX Runtime failed.
        """
        if self._steady and self._memory.captures_of(self._session):
            self._replay()
        else:
            run_bound(self._session, self._binding, run_options(None))
        self._memory.traffic.to_host += sum(self._on_host.values())
        for name, array in self._landed.items():
            array[...] = self._memory.download(self._held[name])

    def _replay(self) -> None:
        """Run from a graph, which the first run captures; the first ones are compared with a run without."""
        if self._graph is None or self._thread != threading.get_ident():
            # ONNX Runtime keeps the graphs of each thread apart, and captures anew in another one.
            self._graph, self._thread = self._memory.new_graph(), threading.get_ident()
            self._checks = CHECKED_RUNS
        outputs = [self._held[name] for name in self._outputs if name in self._held]
        plain = None
        if self._checks:
            run_bound(self._session, self._binding, run_options(None))
            plain = [np.array(self._memory.download(value)) for value in outputs]
        try:
            run_bound(self._session, self._binding, run_options(self._graph))
        except DivpruneError as error:
            reason = reason_of(error.__cause__ or error)
            self._give_up(f"could not capture a CUDA graph, or not replay it ({reason})")
            return
        if plain is not None:
            self._checks -= 1
            if not check_replay(plain, [self._memory.download(value) for value in outputs]):
                self._give_up("replays a CUDA graph with other results than a run without")

    def _give_up(self, why: str) -> None:
        """Run without a graph, here and in all runs of the session to come."""
        warn_of(why)
        self._memory.uncaptured.add(self._session)
        run_bound(self._session, self._binding, run_options(None))

    def make(self, names: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Run, and return these outputs, for which the run makes room on the device.

        Raises:
            DivpruneError: ONNX Runtime failed.
        """
        for name in names:
            self._outputs[name] = None
            self._binding.bind_output(name, self._memory.device)
        self.run()
        found = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        return {name: found[name] for name in names}
