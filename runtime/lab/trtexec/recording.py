"""What the graphs of a language model are fed: sessions that run nothing, keep their inputs and hand on random numbers.

Which visual tokens leave between two graphs of a chain follows from these numbers, how many and all shapes do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.manifest import LanguageInfo, LayerGroup, TensorInfo
from divprune_edge.models.steps import STEPS
from divprune_edge.processing.layout import PromptIds
from divprune_edge.runtime.backends.chain import ChainSession
from divprune_edge.runtime.backends.session import (
    CacheRows,
    DeviceTensor,
    Ints,
    Prediction,
    SlotTable,
    along,
)
from divprune_edge.runtime.lab.trtexec.lines import CACHES

Array = npt.NDArray[Any]


def record_steps(info: LanguageInfo, prompt: PromptIds, visual: Array) -> list[tuple[dict[str, Array], ...]]:
    """Return for each graph, in order, the inputs of the prefill of a prompt and of the decode step after it.

    Input -> values; :data:`~divprune_edge.runtime.lab.trtexec.lines.CACHES` stands for all inputs of the cache.

    Raises:
        UserError: there is no room for the prompt and one token more.
    """
    graphs = [Recorder(part, group) for part, group in zip(info.parts, info.groups, strict=True)]
    session = graphs[0] if info.schedule is None else ChainSession(graphs, _OnHost(), info)
    slot = session.add(visual)
    session.extend(slot, prompt.ids, prompt.positions, None, prompt.images)
    session.step({slot: prompt.ids[-1]}, {slot: prompt.next_position})
    return [tuple(graph.runs) for graph in graphs]


class Recorder(SlotTable):
    """One graph with a cache of fixed capacity. ``runs`` are the inputs of each of its runs."""

    def __init__(self, info: LanguageInfo, group: LayerGroup) -> None:
        super().__init__(info, group, slots=1)
        self._random = np.random.default_rng(0)
        self.runs: list[dict[str, Array]] = []

    def add(self, visual: DeviceTensor, rows: CacheRows | None = None) -> int:
        """See :class:`~divprune_edge.runtime.backends.session.LanguageSession`, also for what follows."""
        return self.take(visual)

    def prefill(self, slot: int, ids: Ints, positions: Ints) -> Prediction:
        """See :class:`~divprune_edge.runtime.backends.session.SlotTable`."""
        return self._run(ids, positions)

    def step(
        self, ids: Mapping[int, int], positions: Mapping[int, int] | None = None
    ) -> dict[int, Prediction]:
        """One run."""
        ((slot, token),) = ids.items()
        self.check_room(slot, 1)
        place = self.length(slot) if positions is None else positions[slot]
        prediction = self._run(np.array([[token]]), np.array([[place]]))
        self.lengths[slot] += 1
        return {slot: prediction}

    def order(self, stepped: Sequence[int]) -> tuple[int, ...]:
        """There is one slot."""
        return (0,)

    def rows(self, slot: int, length: int) -> CacheRows:
        """Nothing is computed."""
        return ()

    def _run(self, ids: Ints, places: Ints) -> Prediction:
        info, capacity, held = self._info, self._group.capacity, self.length(0)
        assert capacity is not None
        step = STEPS[info.dialect](ids, along(places, self._axes), self.lengths.copy(), capacity, info.window)
        # What a cache holds does not change what a step costs, as long as it is finite: one file serves all layers.
        cache = np.zeros((1, info.kv_heads, capacity, info.head_dim), info.cache_dtype)
        cache[:, :, :held] = self._random.standard_normal(cache[:, :, :held].shape)
        inputs = {
            **{name: values for name, values in step.items() if name in self._fed},
            **self.link.fed,
            **({"visual_tokens": self.visual[0]} if info.takes_ids else {}),
            CACHES: cache,
        }
        self.runs.append(inputs)
        sizes = {"batch": 1, "seq": ids.shape[1], "scored": inputs.get("visual_rows", np.empty(0)).size}
        self.link.handed = {
            one.name: self._made(one, sizes) for one in info.outputs if one.name in self._handed
        }
        self.link.order = (0,)
        return Prediction(None, lambda: np.zeros(info.vocabulary, np.float32))

    def _made(self, tensor: TensorInfo, sizes: Mapping[str, int]) -> Array:
        shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
        return self._random.standard_normal(shape).astype(tensor.dtype)


class _OnHost:
    """See :class:`~divprune_edge.runtime.backends.chain.Tensors`."""

    def take(self, tensor: Array, rows: Ints, /, axis: int = 1) -> Array:
        """Return some rows."""
        return np.take(tensor, rows, axis)

    def download(self, tensor: Array, /) -> Array:
        """They are there."""
        return tensor
