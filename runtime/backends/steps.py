"""What the host feeds a language model with a KV cache of fixed capacity, step by step.

One sequence, whose cache holds ``length`` rows before the step. Whatever runs the graph feeds these arrays beside
``visual_tokens`` and the cache itself; see ``export.dialects`` for the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import Dialect, LanguageInfo

StepInputs = dict[str, npt.NDArray[Any]]
"""Name of a graph input -> its value; contiguous."""


def static_step(ids: npt.NDArray[np.int64], length: int, capacity: int) -> StepInputs:
    """Return the inputs of dialect ``static``: new rows are written at ``write_indices``, then all are read.

    ``attention_mask`` bool [1, 1, seq, capacity]: key j may be seen by query i where j <= length + i.
    """
    count = ids.shape[1]
    positions = np.arange(length, length + count, dtype=np.int64)
    return {
        **_common(ids, positions),
        "attention_mask": (np.arange(capacity) <= positions[:, None])[None, None],
        "write_indices": np.array([length], np.int64),
    }


def decomposed_step(ids: npt.NDArray[np.int64], length: int, capacity: int) -> StepInputs:
    """Return the inputs of dialect ``decomposed``: old rows are read from the cache, new ones from the step.

    ``cache_mask`` bool [1, 1, 1, capacity]: rows of the cache that are filled. ``new_mask`` bool
    [1, 1, seq, seq]: new key j may be seen by query i where j <= i.
    """
    count = ids.shape[1]
    return {
        **_common(ids, np.arange(length, length + count, dtype=np.int64)),
        "cache_mask": (np.arange(capacity) < length)[None, None, None],
        "new_mask": np.tri(count, dtype=np.bool_)[None, None],
    }


def _common(ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> StepInputs:
    return {
        "input_ids": np.ascontiguousarray(ids),
        "logits_index": np.array([ids.shape[1] - 1], np.int64),
        "position_ids": positions[None],
    }


STEPS: dict[Dialect, Callable[[npt.NDArray[np.int64], int, int], StepInputs]] = {
    "static": static_step,
    "decomposed": decomposed_step,
}
"""Dialect -> the function that makes a step's inputs from ids int64 [1, seq], ``length`` and ``capacity``."""


def check_room(info: LanguageInfo, length: int, count: int) -> None:
    """Check that ``count`` more tokens fit behind ``length``.

    Raises:
        UserError: they do not; the sentence names both numbers.
    """
    if length + count > info.positions:
        raise UserError(
            f"The sequence would have {length + count} tokens, but there is room for {info.positions}: ask a "
            "shorter question, keep fewer visual tokens, or export with a larger --capacity.",
            code="sequence-too-long",
        )


def pieces(ids: Sequence[int], chunk: int | None) -> list[npt.NDArray[np.int64]]:
    """Return ``ids`` as arrays [1, seq] of at most ``chunk`` ids each."""
    row = np.asarray(ids, dtype=np.int64)[None]
    step = chunk or row.shape[1]
    return [np.ascontiguousarray(row[:, start : start + step]) for start in range(0, row.shape[1], step)]
