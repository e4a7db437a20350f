"""The exported graphs, run by ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_graph(model: Path | bytes) -> Any:
    """Return an ``onnxruntime.InferenceSession`` on the CPU for a file, or for a serialised small model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about initialisers are not the reader's business
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch has threads, too
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class LanguageGraph:
    """A language model graph (dialect ``portable``) and its growing KV cache."""

    def __init__(self, path: Path) -> None:
        self._session = open_graph(path)
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._past = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        self._token_dtype = _NUMPY[inputs["visual_tokens"].type]

    def start(self, batch: int) -> dict[str, Array]:
        """Return the empty cache of ``batch`` sequences."""
        return {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), _NUMPY[value.type])
            for name, value in self._past.items()
        }

    def step(
        self, ids: Array, visual: Array, mask: Array, positions: Array, cache: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        """Feed a chunk; return float32 logits [batch, V] of its last column and the grown cache.

        Args:
            ids: int64 [batch, seq] of the token table.
            visual: [batch, K, D].
            mask: bool [batch, past + seq].
            positions: int64 [batch, seq].
            cache: what the step before returned.
        """
        feed = {
            "input_ids": ids,
            "visual_tokens": visual.astype(self._token_dtype, copy=False),
            "logits_index": np.full(len(ids), ids.shape[1] - 1),
            "attention_mask": mask,
            "position_ids": positions,
            **cache,
        }
        results = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        logits = results.pop("logits")
        return logits, {
            name.replace("present.", "past_key_values."): value for name, value in results.items()
        }

    def follow(
        self, ids: Array, visual: Array, mask: Array, forced: Array, cuts: Sequence[int] = ()
    ) -> Array:
        """Prefill ``ids``, in one piece or cut before the columns ``cuts``, then feed ``forced`` one by one.

        Args:
            ids: int64 [batch, length], padded on the left where ``mask`` is False.
            visual: [batch, K, D].
            mask: bool [batch, length].
            forced: int64 [batch, steps].
            cuts: ascending columns in 1 … length - 1.

        Returns:
            float32 [batch, steps + 1, V].
        """
        batch = len(ids)
        everything = np.concatenate([ids, forced], axis=1)
        allowed = np.concatenate([mask, np.ones(forced.shape, bool)], axis=1)
        positions = np.maximum(np.cumsum(allowed, axis=1) - 1, 0)
        length, total = ids.shape[1], everything.shape[1]
        ends = [*cuts, *range(length, total + 1)]
        logits, cache = [], self.start(batch)
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            chunk, cache = self.step(
                everything[:, begin:end], visual, allowed[:, :end], positions[:, begin:end], cache
            )
            if end >= length:
                logits.append(chunk)
        return np.stack(logits, axis=1)


class FusedLanguageGraph:
    """A language model graph of dialect ``onnxruntime``: a cache of fixed capacity, padding on the right."""

    def __init__(self, path: Path) -> None:
        self._session = open_graph(path)
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._past = {name: value for name, value in inputs.items() if name.startswith("past_key_values.")}
        self._token_dtype = _NUMPY[inputs["visual_tokens"].type]

    def follow(
        self, ids: Array, visual: Array, mask: Array, forced: Array, cuts: Sequence[int] = ()
    ) -> Array:
        """As :meth:`LanguageGraph.follow`; padding moves to the right, where this dialect wants it."""
        lengths = mask.sum(axis=1)
        ids = np.stack([np.roll(row, int(n)) for row, n in zip(ids, lengths, strict=True)])
        capacity = ids.shape[1] + forced.shape[1]
        cache = {
            name: np.zeros((len(ids), value.shape[1], capacity, value.shape[3]), _NUMPY[value.type])
            for name, value in self._past.items()
        }
        logits, ends = [], [*cuts, ids.shape[1]]
        for begin, end in zip([0, *cuts], ends, strict=True):
            # Only whole rows have padding, and those come in one piece.
            filled = lengths if end == ids.shape[1] else np.full(len(ids), end)
            chunk = self._step(ids[:, begin:end], visual, filled, filled - 1 - begin, cache)
        logits.append(chunk)
        for step in range(forced.shape[1]):
            lengths = lengths + 1
            logits.append(
                self._step(forced[:, step : step + 1], visual, lengths, np.zeros_like(lengths), cache)
            )
        return np.stack(logits, axis=1)

    def _step(
        self, ids: Array, visual: Array, lengths: Array, index: Array, cache: dict[str, Array]
    ) -> Array:
        """Feed ids [batch, seq], after which each sequence has ``lengths`` positions; updates the cache."""
        feed = {
            "input_ids": ids,
            "visual_tokens": visual.astype(self._token_dtype, copy=False),
            "logits_index": index.astype(np.int64),
            "seqlens_k": (lengths - 1).astype(np.int32),
            "total_sequence_length": np.array(lengths.max(), np.int32),
            **cache,
        }
        results = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
        logits = results.pop("logits")
        cache.update({name.replace("present.", "past_key_values."): value for name, value in results.items()})
        return np.asarray(logits)


AnyLanguageGraph = LanguageGraph | FusedLanguageGraph
"""A language model graph in one of the dialects; what they share is :meth:`follow`."""


def open_language(path: Path, dialect: str) -> AnyLanguageGraph:
    """Open a language model graph of either dialect."""
    return FusedLanguageGraph(path) if dialect == "onnxruntime" else LanguageGraph(path)
