"""The language model with a KV cache whose size is part of the graph, on the CPU.

Dialects ``static`` and ``decomposed`` are made for TensorRT; here a bundle for a Jetson can be tried on a PC. What a
step is fed is the same as there (:mod:`~divprune_edge.runtime.backends.steps`), and so is where the new rows go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from divprune_edge.errors import UserError
from divprune_edge.manifest import LanguageInfo
from divprune_edge.runtime.backends.backend import CacheRows, DeviceTensor
from divprune_edge.runtime.backends.binding import CACHE_TYPES, run_bound
from divprune_edge.runtime.backends.steps import STEPS, check_room, pieces


class FixedLanguage:
    """One sequence whose cache is one block of memory, bound once.

    The block is [2 x layers, kv_heads, capacity, head_dim], key and value of each layer in turn. What a subclass adds
    is how a step's new rows come into it.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        device: str,
        info: LanguageInfo,
        visual: DeviceTensor,
        rows: CacheRows | None = None,
    ) -> None:
        assert device == "cpu" and info.capacity is not None
        self._session = session
        self._info = info
        self._capacity = info.capacity
        self._length = 0
        self._names = [f"{i}.{part}" for i in range(info.layers) for part in ("key", "value")]
        # Hidden rows have no weight, but nothing times what is not a number is not a number.
        self._cache = self._block(info.capacity)
        if rows:
            self._length = rows[0].shape[2]
            self._cache[:, :, : self._length] = np.concatenate(rows)
        self._binding = session.io_binding()
        self._logits = np.empty((1, info.vocabulary), np.float32)
        self._binding.bind_ortvalue_input("visual_tokens", visual)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(self._logits))
        self._past = self._bound_to(self._cache)
        for name, value in zip(self._names, self._past, strict=True):
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
        # What lies behind bound values must live as long as they do.
        self._visual, self._step_inputs = visual, tuple[ort.OrtValue, ...]()
        self._bind_outputs()

    @property
    def length(self) -> int:
        """See :class:`~divprune_edge.runtime.backends.backend.LanguageSession`, also for what follows."""
        return self._length

    def extend(self, ids: Sequence[int], chunk: int | None = None) -> npt.NDArray[np.float32]:
        """Run one step per chunk.

        Raises:
            UserError: the cache has no room for so many ids.
        """
        check_room(self._info, self._length, len(ids))
        for piece in pieces(ids, chunk):
            self._step(piece)
        logits: npt.NDArray[np.float32] = self._logits[0]
        return logits

    def truncate(self, length: int) -> None:
        """Rows from ``length`` on are hidden, and written over."""
        self._length = min(self._length, length)

    def rows(self, length: int) -> CacheRows:
        """Copy them."""
        return tuple(np.array(value[None, :, :length]) for value in self._cache)

    def _step(self, ids: npt.NDArray[np.int64]) -> None:
        inputs = STEPS[self._info.dialect](ids, self._length, self._capacity)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._step_inputs = tuple(values.values())
        self._before_run(ids.shape[1])
        run_bound(self._session, self._binding)
        self._after_run(ids.shape[1])
        self._length += ids.shape[1]

    def _bind_outputs(self) -> None:
        """Bind what is the same in every step."""

    def _before_run(self, count: int) -> None:
        """Bind where ``count`` new rows go."""

    def _after_run(self, count: int) -> None:
        """Put ``count`` new rows behind those that the cache holds."""

    def _block(self, rows: int) -> npt.NDArray[np.floating[Any]]:
        """Return zeros for ``rows`` rows of every key and value."""
        shape = (len(self._names), self._info.kv_heads, rows, self._info.head_dim)
        return np.zeros(shape, CACHE_TYPES[self._info.cache_dtype])

    @staticmethod
    def _bound_to(block: npt.NDArray[np.floating[Any]]) -> list[ort.OrtValue]:
        """Return a tensor [1, kv_heads, rows, head_dim] for each key and value, over the block's own memory."""
        return [ort.OrtValue.ortvalue_from_numpy(block[i : i + 1]) for i in range(len(block))]


class StaticLanguage(FixedLanguage):
    """Dialect ``static``: the graph writes into the cache, which is bound as its output, too."""

    def _bind_outputs(self) -> None:
        for name, value in zip(self._names, self._past, strict=True):
            self._binding.bind_ortvalue_output(f"present.{name}", value)


class DecomposedLanguage(FixedLanguage):
    """Dialect ``decomposed``: the graph gives the new rows, and they are appended here."""

    def _bind_outputs(self) -> None:
        self._new = self._block(0)
        self._new_values: list[ort.OrtValue] = []

    def _before_run(self, count: int) -> None:
        if self._new.shape[2] == count:
            return
        self._new = self._block(count)
        self._new_values = self._bound_to(self._new)
        for name, value in zip(self._names, self._new_values, strict=True):
            self._binding.bind_ortvalue_output(f"new_key_values.{name}", value)

    def _after_run(self, count: int) -> None:
        self._cache[:, :, self._length : self._length + count] = self._new


def check_device(info: LanguageInfo, device: str) -> None:
    """Check that the bundle's language model can be run there.

    Raises:
        UserError: a cache of fixed size, and not the CPU.
    """
    if info.capacity is not None and device != "cpu":
        raise UserError(
            f"The bundle's language model is in dialect '{info.dialect}', which is made for TensorRT and which ONNX "
            f"Runtime runs on the CPU only: use --backend tensorrt or cpu, or export for '--backend {device}' with "
            "--dialect portable.",
            code="dialect-with-backend",
        )
