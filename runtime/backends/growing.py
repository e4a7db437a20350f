"""The language model in dialect ``portable``: a step takes past keys and values and returns them longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.manifest import LanguageInfo
from divprune_edge.runtime.backends.backend import CacheRows, DeviceTensor
from divprune_edge.runtime.backends.binding import CACHE_TYPES, Binding
from divprune_edge.runtime.backends.ragged import check_context, padded


class GrowingBatch:
    """Sequences side by side, padded on the left wherever one has fewer new ids than another.

    A row of the cache is padding for some sequences and real for others: ``attention_mask`` says which, and
    positions count real ids alone.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        info: LanguageInfo,
        visual: DeviceTensor,
        rows: CacheRows | None = None,
    ) -> None:
        self._session = session
        self._device = device
        self._info = info
        self._visual = visual
        sequences = visual.shape()[0]
        names = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        self._past = [f"past_key_values.{name}" for name in names]
        self._present = [f"present.{name}" for name in names]
        empty = np.zeros((1, info.kv_heads, 0, info.head_dim), CACHE_TYPES[info.cache_dtype])
        start = rows or tuple(empty for _ in names)
        self._cache = [self._to_device(np.repeat(value, sequences, axis=0)) for value in start]
        self._real = np.ones((sequences, start[0].shape[2]), np.bool_)
        self._lengths = np.full(sequences, start[0].shape[2], np.int64)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Ids of each sequence that the cache holds, int64 [sequences]."""
        return self._lengths

    def extend(self, ids: Sequence[Sequence[int]], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """See :class:`~divprune_edge.runtime.backends.backend.LanguageBatch`: one step per chunk of columns."""
        matrix, counts = padded(ids, left=True)
        width = matrix.shape[1]
        check_context(int((self._lengths + counts).max()), self._info.context)
        order = np.arange(width) - (width - counts[:, None])  # negative where it is padding
        real, positions = order >= 0, np.maximum(self._lengths[:, None] + order, 0)
        step = chunk or width
        for start in range(0, width, step):
            part = np.s_[:, start : start + step]
            logits = self._step(matrix[part], real[part], positions[part])
        self._lengths = self._lengths + counts
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Copy through the host, also on CUDA; rows of the cache that are padding for all of them go too."""
        chosen = list(rows)
        self._real = self._real[chosen]
        columns = np.flatnonzero(self._real.any(axis=0))
        self._real = self._real[:, columns]
        self._lengths = self._lengths[chosen]
        self._visual = self._to_device(self._visual.numpy()[chosen])
        self._cache = [self._to_device(value.numpy()[chosen][:, :, columns]) for value in self._cache]

    def truncate(self, length: int) -> None:
        """Cut the cache's tensors; of a batch without padding."""
        if length < self._real.shape[1]:
            # Through the host, also on CUDA: once per question, against once per token.
            self._cache = [self._to_device(value) for value in self.rows(length)]
            self._real = self._real[:, :length]
            self._lengths = np.minimum(self._lengths, length)

    def rows(self, length: int) -> CacheRows:
        """Copy through the host."""
        return tuple(np.array(value.numpy()[:, :, :length]) for value in self._cache)

    def _step(
        self, ids: npt.NDArray[np.int64], real: npt.NDArray[np.bool_], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        self._real = np.concatenate((self._real, real), axis=1)
        binding = Binding(self._session, self._device)
        binding.array("input_ids", np.ascontiguousarray(ids))
        binding.array("logits_index", np.full(ids.shape[0], ids.shape[1] - 1, np.int64))
        binding.array("attention_mask", self._real)
        binding.array("position_ids", np.ascontiguousarray(positions))
        binding.input("visual_tokens", self._visual)
        for name, value in zip(self._past, self._cache, strict=True):
            binding.input(name, value)
        outputs = binding.run(self._present, host=["logits"])
        self._cache = [outputs[name] for name in self._present]
        logits: npt.NDArray[np.float32] = outputs["logits"].numpy()
        return logits

    def _to_device(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device)


class GrowingLanguage:
    """One sequence: a batch of one, which has no padding and can be cut back."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        info: LanguageInfo,
        visual: DeviceTensor,
        rows: CacheRows | None = None,
    ) -> None:
        self._batch = GrowingBatch(session, device, info, visual, rows)

    @property
    def length(self) -> int:
        """See :class:`~divprune_edge.runtime.backends.backend.LanguageSession`, also for what follows."""
        return int(self._batch.lengths[0])

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Run one step per chunk."""
        logits: npt.NDArray[np.float32] = self._batch.extend((ids,), chunk)[0]
        return logits

    def truncate(self, length: int) -> None:
        """Cut the cache's tensors."""
        self._batch.truncate(length)

    def rows(self, length: int) -> CacheRows:
        """Copy through the host."""
        return self._batch.rows(length)
