"""The language model in dialect ``onnxruntime``: a KV cache of fixed capacity that each step writes into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo
from divprune_edge.runtime.backends.backend import CacheRows, DeviceTensor
from divprune_edge.runtime.backends.binding import CACHE_TYPES, run_bound
from divprune_edge.runtime.backends.ragged import check_context, padded

FIRST_CAPACITY = 256
"""Rows that a cache begins with; it doubles when they are full, up to the context."""


class InPlaceBatch:
    """Sequences side by side; their cache is bound once as input and output, so a step copies none of it.

    Each sequence fills the cache from its first row on. Prompts are padded on the right: what padding writes
    behind a shorter prompt is written over by its answer.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        info: LanguageInfo,
        visual: DeviceTensor,
        rows: CacheRows | None = None,
    ) -> None:
        sequences = visual.shape()[0]
        if rows and sequences > 1:
            raise _one_piece()
        self._session = session
        self._device = device
        self._info = info
        self._names = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        self._lengths = np.full(sequences, rows[0].shape[2] if rows else 0, np.int64)
        self._binding = session.io_binding()
        self._cache: list[ort.OrtValue] = []
        # What lies behind bound values must live as long as they do.
        self._step_inputs = tuple[ort.OrtValue, ...]()
        self._bind_sequences(visual)
        self._reserve(min(max(FIRST_CAPACITY, int(self._lengths[0])), info.context), rows or ())

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Rows of the cache that each sequence fills, int64 [sequences]."""
        return self._lengths

    @property
    def capacity(self) -> int:
        """Rows that the cache has room for."""
        return self._capacity

    def extend(self, ids: Sequence[Sequence[int]], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """See :class:`~divprune_edge.runtime.backends.backend.LanguageBatch`: one step per chunk."""
        matrix, counts = padded(ids, left=False)
        sequences, width = matrix.shape
        step = chunk or width
        if sequences > 1 and width > 1 and (step < width or self._lengths.any()):
            raise _one_piece()
        total = int((self._lengths + counts).max())
        check_context(total, self._info.context)
        if total > self._capacity:
            wanted = min(max(total, 2 * self._capacity), self._info.context)
            self._reserve(wanted, self.rows(int(self._lengths.max())))
        for start in range(0, width, step):
            self._step(np.ascontiguousarray(matrix[:, start : start + step]), counts - start)
        return self._logits

    def keep(self, rows: Sequence[int]) -> None:
        """Copy through the host, also on CUDA."""
        chosen = list(rows)
        longest = int(self._lengths[chosen].max())
        kept = tuple(value[chosen] for value in self.rows(longest))
        self._lengths = self._lengths[chosen]
        visual = np.ascontiguousarray(self._visual.numpy()[chosen])
        self._bind_sequences(ort.OrtValue.ortvalue_from_numpy(visual, self._device))
        self._reserve(self._capacity, kept)

    def truncate(self, length: int) -> None:
        """Rows from ``length`` on are written over."""
        self._lengths = np.minimum(self._lengths, length)

    def rows(self, length: int) -> CacheRows:
        """Copy through the host, also on CUDA: a few times per sequence, against once per token."""
        return tuple(np.array(value.numpy()[:, :, :length]) for value in self._cache)

    def _step(self, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        """Feed the real ids among ``ids``; ``counts`` beyond their width are left for a later step."""
        new = np.minimum(counts, ids.shape[1])
        lengths = self._lengths + new
        # A sequence that has ended is fed padding, which must fall on a row that it has.
        last = np.maximum(lengths - 1, 0)
        inputs = (
            ("input_ids", ids),
            ("logits_index", np.maximum(new - 1, 0)),
            ("seqlens_k", last.astype(np.int32)),
            ("total_sequence_length", np.array(last.max() + 1, np.int32)),
        )
        values = tuple(ort.OrtValue.ortvalue_from_numpy(array) for _, array in inputs)
        for (name, _), value in zip(inputs, values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        self._step_inputs = values
        run_bound(self._session, self._binding)
        self._lengths = lengths

    def _bind_sequences(self, visual: DeviceTensor) -> None:
        """Bind what has a row per sequence, the cache aside."""
        self._visual = visual
        self._binding.bind_ortvalue_input("visual_tokens", visual)
        self._logits = np.empty((visual.shape()[0], self._info.vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))

    def _reserve(self, capacity: int, rows: CacheRows) -> None:
        """Bind a cache of ``capacity`` rows that begins with ``rows``."""
        shape = (self._lengths.size, self._info.kv_heads, capacity, self._info.head_dim)
        self._cache = []
        for i, name in enumerate(self._names):
            whole = np.zeros(shape, CACHE_TYPES[self._info.cache_dtype])
            if rows:
                whole[:, :, : rows[i].shape[2]] = rows[i]
            value = ort.OrtValue.ortvalue_from_numpy(whole, self._device)
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            self._binding.bind_ortvalue_output(f"present.{name}", value)
            self._cache.append(value)
        self._capacity = capacity


class InPlaceLanguage:
    """One sequence: a batch of one, which may go on with several ids at once and can be cut back."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        info: LanguageInfo,
        visual: DeviceTensor,
        rows: CacheRows | None = None,
    ) -> None:
        self._batch = InPlaceBatch(session, device, info, visual, rows)

    @property
    def length(self) -> int:
        """See :class:`~divprune_edge.runtime.backends.backend.LanguageSession`, also for what follows."""
        return int(self._batch.lengths[0])

    @property
    def capacity(self) -> int:
        """Rows that the cache has room for."""
        return self._batch.capacity

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Run one step per chunk."""
        logits: npt.NDArray[np.float32] = self._batch.extend((ids,), chunk)[0]
        return logits

    def truncate(self, length: int) -> None:
        """Rows from ``length`` on are written over."""
        self._batch.truncate(length)

    def rows(self, length: int) -> CacheRows:
        """Copy through the host."""
        return self._batch.rows(length)


def check_one_piece(chunk: int | None) -> None:
    """Check that a batch's prompts are fed as GroupQueryAttention takes them.

    Raises:
        UserError: a chunk was asked for.
    """
    if chunk is not None:
        raise _one_piece()


def _one_piece() -> UserError:
    return UserError(
        "A batch in dialect 'onnxruntime' is prefilled once and in one piece: leave out prefill_chunk and rows of "
        "another cache, ask one by one, or export with --dialect portable.",
        code="batch-with-dialect",
    )
