"""What a run of an ONNX Runtime session reads and writes, bound by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import DivpruneError

CACHE_TYPES = {"float32": np.float32, "float16": np.float16}


class Binding:
    """One run of a session: inputs by name, outputs left on the device or brought to the host."""

    def __init__(self, session: ort.InferenceSession, device: str) -> None:
        self._session = session
        self._device = device
        self._binding = session.io_binding()
        self._held: list[ort.OrtValue] = []

    def input(self, name: str, value: ort.OrtValue) -> None:
        """Bind a tensor where it lies."""
        self._held.append(value)
        self._binding.bind_ortvalue_input(name, value)

    def array(self, name: str, value: npt.NDArray[Any]) -> None:
        """Bind an array of the host."""
        self.input(name, ort.OrtValue.ortvalue_from_numpy(value))

    def run(self, device: Sequence[str], host: Sequence[str] = ()) -> dict[str, ort.OrtValue]:
        """Run and return the outputs asked for.

        Raises:
            DivpruneError: ONNX Runtime failed.
        """
        for name in device:
            self._binding.bind_output(name, self._device)
        for name in host:
            self._binding.bind_output(name, "cpu")
        run_bound(self._session, self._binding)
        return dict(zip([*device, *host], self._binding.get_outputs(), strict=True))


def run_bound(session: ort.InferenceSession, binding: ort.IOBinding) -> None:
    """Run a session on what is bound.

    Raises:
        DivpruneError: ONNX Runtime failed, as when memory runs out.
    """
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # an exception class per status code, all of them private
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise DivpruneError(
            f"ONNX Runtime failed while running a graph ({reason}): if memory ran out, keep fewer visual tokens "
            "or ask for a shorter answer.",
            code="onnxruntime-failed",
        ) from error
