"""Where a language model's ``logits`` go, and its ``next_id`` where the graph has one."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import LanguageInfo
from divprune_edge.runtime.backends.binding import Binding
from divprune_edge.runtime.backends.memory import DeviceMemory
from divprune_edge.runtime.backends.session import Prediction, best_of


class Outputs:
    """Those of a step of ``count`` sequences: the id comes to the host, and the logits where they are read.

    Without ``next_id`` the logits come with every step. A graph of a chain that is not its last one has neither.
    """

    def __init__(self, binding: Binding, memory: DeviceMemory, info: LanguageInfo, count: int) -> None:
        self._memory, self._vocabulary = memory, info.vocabulary
        shape = count, info.vocabulary
        self._ids: npt.NDArray[np.int64] | None = None
        self._logits: npt.NDArray[np.float32] | None = None
        if info.says_next:
            self._ids, self._value = np.empty(count, np.int64), memory.empty(shape, "float32")
            binding.landing("next_id", self._ids)
            binding.output("logits", self._value)
        elif info.gives_logits:
            self._logits = np.empty(shape, np.float32)
            binding.landing("logits", self._logits)

    def renew(self) -> None:
        """Forget what was read of the step before."""
        if self._ids is not None:
            self._logits = None

    def read(self, at: int) -> Prediction:
        """Return what the last step says of one sequence."""
        best = None if self._ids is None else best_of(int(self._ids[at]), self._vocabulary)
        return Prediction(best, partial(self._row, at))

    def _row(self, at: int) -> npt.NDArray[np.float32]:
        if self._logits is None:  # of a graph that gives none, nobody reads them
            self._logits = self._memory.download(self._value)
        row: npt.NDArray[np.float32] = self._logits[at]
        return row
