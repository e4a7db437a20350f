"""The language model in dialect ``onnxruntime``: a KV cache of fixed capacity that each step writes into."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.manifest import LanguageInfo
from divprune_edge.runtime.backends.base import CacheRows, DeviceTensor

CACHE_TYPES = {"float32": np.float32, "float16": np.float16}
FIRST_CAPACITY = 256
"""Rows that a cache begins with; it doubles when they are full, up to the context."""


class InPlaceLanguage:
    """One sequence; its cache is bound once as input and output, so a step copies none of it."""

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
        self._names = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        self._length = rows[0].shape[2] if rows else 0
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("visual_tokens", visual)
        self._logits = np.empty((1, info.vocabulary), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        self._cache: list[ort.OrtValue] = []
        self._reserve(min(max(FIRST_CAPACITY, self._length), info.context), rows or ())
        # What lies behind bound values must live as long as they do.
        self._visual, self._step_inputs = visual, tuple[ort.OrtValue, ...]()

    @property
    def length(self) -> int:
        """See :class:`~divprune_edge.runtime.backends.base.LanguageSession`, also for what follows."""
        return self._length

    @property
    def capacity(self) -> int:
        """Rows that the cache has room for."""
        return self._capacity

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Run one step per chunk."""
        row = np.asarray(ids, dtype=np.int64)[None]
        total = self._length + row.shape[1]
        if total > self._info.context:
            raise UserError(
                f"The sequence would have {total} tokens, but the model's context holds {self._info.context}."
            )
        if total > self._capacity:
            wanted = min(max(total, 2 * self._capacity), self._info.context)
            self._reserve(wanted, self.rows(self._length))
        step = chunk or row.shape[1]
        for start in range(0, row.shape[1], step):
            self._step(np.ascontiguousarray(row[:, start : start + step]))
        logits: npt.NDArray[np.float32] = self._logits[0]
        return logits

    def truncate(self, length: int) -> None:
        """Rows from ``length`` on are written over."""
        self._length = min(self._length, length)

    def _step(self, ids: npt.NDArray[np.int64]) -> None:
        count = ids.shape[1]
        total = self._length + count
        inputs = (
            ("input_ids", ids),
            ("logits_index", np.array([count - 1], np.int64)),
            ("seqlens_k", np.array([total - 1], np.int32)),
            ("total_sequence_length", np.array(total, np.int32)),
        )
        values = tuple(ort.OrtValue.ortvalue_from_numpy(array) for _, array in inputs)
        for (name, _), value in zip(inputs, values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        self._step_inputs = values
        run_bound(self._session, self._binding)
        self._length = total

    def rows(self, length: int) -> CacheRows:
        """Copy through the host, also on CUDA: a few times per sequence, against once per token."""
        return tuple(np.array(value.numpy()[:, :, :length]) for value in self._cache)

    def _reserve(self, capacity: int, rows: CacheRows) -> None:
        """Bind a cache of ``capacity`` rows that begins with ``rows``."""
        shape = (1, self._info.kv_heads, capacity, self._info.head_dim)
        self._cache = []
        for i, name in enumerate(self._names):
            whole = np.zeros(shape, CACHE_TYPES[self._info.cache_dtype])
            if rows:
                whole[:, :, : self._length] = rows[i]
            value = ort.OrtValue.ortvalue_from_numpy(whole, self._device)
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            self._binding.bind_ortvalue_output(f"present.{name}", value)
            self._cache.append(value)
        self._capacity = capacity


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
            "or ask for a shorter answer."
        ) from error
