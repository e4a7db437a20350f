"""The graphs of a chain, run by ONNX Runtime one behind the other, as if they were one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Chain:
    """The graphs of a chain as one session: nothing leaves between them, so that they are the whole model."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        # What a schedule's method is fed, and what it read in the last run, by graph and name.
        self.asked: dict[str, Array] = {}
        self.read: dict[tuple[int, str], Array] = {}

    def get_inputs(self) -> list[Any]:
        """Return those of the first graph, and the caches of all."""
        first, *rest = ([*part.get_inputs()] for part in self._parts)
        return first + [one for part in rest for one in part if one.name.startswith("past_key_values.")]

    def get_outputs(self) -> list[Any]:
        """Return what no graph of the chain takes."""
        between = ("hidden_out", "scores.")
        return [one for part in self._parts for one in part.get_outputs() if not one.name.startswith(between)]

    def run(self, names: Sequence[str], feed: dict[str, Array]) -> list[Array]:
        """Run one graph behind the other; of a mask each takes the rows that its cache has."""
        found: dict[str, Array] = {}
        for i, part in enumerate(self._parts):
            mine = {one.name: _fed(one, {**self.asked, **feed}, found) for one in part.get_inputs()}
            outputs = [one.name for one in part.get_outputs()]
            values = dict(zip(outputs, part.run(outputs, mine), strict=True))
            found.update(values)
            read = {name: value for name, value in values.items() if name.startswith("scores.")}
            self.read |= {(i, name.removeprefix("scores.")): value for name, value in read.items()}
        return [found[name] for name in names]


def _fed(wanted: Any, feed: dict[str, Array], found: dict[str, Array]) -> Array:
    """Return an input of a graph of a chain; where a method reads, it is asked for the first row."""
    if wanted.name == "hidden":
        return found["hidden_out"]
    if wanted.name not in feed:
        return np.zeros(1, np.int64)
    value, size = feed[wanted.name], wanted.shape[-1] if wanted.shape else None
    fixed = isinstance(size, int) and wanted.name in ("attention_mask", "cache_mask")
    return value[..., :size] if fixed else value
