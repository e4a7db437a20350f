"""What is kept from run to run so that CUDA can replay it: buffers of the encoder, sessions of the language model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.runtime.backends.binding import Binding
from divprune_edge.runtime.backends.captured import warn_of
from divprune_edge.runtime.backends.memory import DeviceMemory, dtype_of

CAPTURE: dict[str, dict[str, str]] = {"cuda": {"enable_cuda_graph": "1"}, "cpu": {}}
"""What a provider is told so that runs can be captured; on the CPU the same path runs without."""
MOST_SHAPES = 8
"""Shapes of the inputs that an encoder has buffers for; others run without a graph."""


def open_capturing(
    file: str, options: ort.SessionOptions, memory: DeviceMemory
) -> ort.InferenceSession | None:
    """Return a session whose runs can be captured; None where ONNX Runtime refuses."""
    (provider, facts), *others = memory.providers
    try:
        return ort.InferenceSession(
            file, options, providers=[(provider, {**facts, **CAPTURE[memory.device]}), *others]
        )
    except (
        Exception
    ) as error:  # a class per status code; a session without graphs will say what else is wrong
        warn_of(f"captures no CUDA graph of '{file}' ({' '.join(str(error).split())[:300]})")
        return None


class SteadyRuns:
    """Runs of one session on buffers that stay, one set for each shape of its inputs."""

    def __init__(self, session: ort.InferenceSession, memory: DeviceMemory) -> None:
        self._session, self._memory = session, memory
        self._sets: dict[tuple[Any, ...], tuple[Binding, dict[str, ort.OrtValue]]] = {}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> dict[str, ort.OrtValue]:
        """Return these outputs, which are the caller's.

        Raises:
            DivpruneError: ONNX Runtime failed.
        """
        key = (*names, *((name, value.shape) for name, value in inputs.items()))
        if key in self._sets:
            binding, outputs = self._sets[key]
            binding.arrays(inputs)
            binding.run()
            return self._own(outputs)
        plain = Binding(self._session, self._memory)
        plain.arrays(inputs)
        # Made where the session makes room for what lies between its nodes as well, and a graph that was captured
        # writes there in every replay: what is the caller's lies in memory of our own.
        found = self._own(plain.make(names))
        if len(self._sets) < MOST_SHAPES:
            binding = Binding(self._session, self._memory, steady=True)
            outputs = {
                name: self._memory.empty(value.shape(), dtype_of(value)) for name, value in found.items()
            }
            for name, value in outputs.items():
                binding.output(name, value)
            self._sets[key] = binding, outputs
        return found

    def _own(self, values: Mapping[str, ort.OrtValue]) -> dict[str, ort.OrtValue]:
        return {name: self._memory.join([value], value.shape()) for name, value in values.items()}


class Lease:
    """A session that goes back to those that are free once nobody holds the lease: its graphs are for its buffers."""

    def __init__(self, session: Any, free: list[Any]) -> None:
        self._leased = session
        weakref.finalize(self, _give_back, session, free)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leased, name)


def _give_back(session: Any, free: list[Any]) -> None:
    session.clear()
    free.append(session)
