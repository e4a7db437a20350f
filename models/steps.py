"""What the host feeds a language model that is given its KV cache as one block, step by step.

A step appends ``seq`` ids to each of ``n`` sequences, whose caches hold ``lengths`` rows before it. Whatever runs the
graph feeds these arrays beside ``visual_tokens`` and the cache itself; see ``export.dialects`` for the graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError
from divprune_edge.manifest import Dialect
from divprune_edge.models.dialects import option

Ints = npt.NDArray[np.int64]
StepInputs = dict[str, npt.NDArray[Any]]
"""Name of a graph input -> its value; contiguous."""


def static_step(ids: Ints, positions: Ints, lengths: Ints, capacity: int, window: int | None) -> StepInputs:
    """Return the inputs of dialect ``static``: new rows are written at ``write_indices``, then all are read.

    ``attention_mask`` bool [n, 1, seq, capacity]: key j may be seen by query i where j <= length + i, and with a
    sliding window only the last ``window`` of them.
    """
    last = (lengths[:, None] + np.arange(ids.shape[1]))[:, None, :, None]
    keys = np.arange(capacity)
    seen = keys <= last
    return {
        **_common(ids, positions),
        "attention_mask": seen if window is None else seen & (keys > last - window),
        "write_indices": lengths,
    }


def decomposed_step(
    ids: Ints, positions: Ints, lengths: Ints, capacity: int, window: int | None
) -> StepInputs:
    """Return the inputs of dialect ``decomposed``: old rows are read from the cache, new ones from the step.

    ``cache_mask`` bool [n, 1, 1, capacity]: rows of the cache that are filled; with a sliding window
    [n, 1, seq, capacity], as another query may see others. ``new_mask`` bool [n, 1, seq, seq]: new key j may be seen by
    query i where j <= i.
    """
    count, seq = ids.shape
    keys, queries = np.arange(capacity), np.arange(seq)[:, None]
    filled = (keys < lengths[:, None])[:, None, None]
    new = np.tri(seq, dtype=np.bool_)
    if window is not None:
        filled = filled & (keys > (lengths[:, None] + np.arange(seq))[:, None, :, None] - window)
        new &= np.arange(seq) > queries - window
    return {**_common(ids, positions), "cache_mask": filled, "new_mask": np.tile(new, (count, 1, 1, 1))}


def fused_step(ids: Ints, positions: Ints, lengths: Ints, capacity: int, window: int | None) -> StepInputs:
    """Return the inputs of dialect ``onnxruntime``, whose operator derives positions from the lengths.

    But where a token has three, which are fed.

    Raises:
        UserError: the positions are others.
    """
    rows, placed = lengths[:, None] + np.arange(ids.shape[1]), positions.ndim == 3
    if not placed and not np.array_equal(positions, rows):
        raise UserError(
            "The language model's dialect places every token at the row of the cache that it fills: export with "
            f"{option(lambda one: one.takes_positions)} for other positions.",
            code="dialect-positions",
        )
    last = rows[:, -1]
    return {
        "input_ids": ids,
        "logits_index": np.full(ids.shape[0], ids.shape[1] - 1, np.int64),
        "seqlens_k": last.astype(np.int32),
        "total_sequence_length": np.array(last.max() + 1, np.int32),
        **({"position_ids": positions} if placed else {}),
    }


def on_device(inputs: StepInputs, capacity: int) -> StepInputs:
    """Return a decode step's inputs so that those which the host must hold are the same in every step.

    ``total_sequence_length`` bounds the rows that attention is launched for; which of them count, ``seqlens_k`` says.
    """
    if "total_sequence_length" not in inputs:
        return inputs
    return {**inputs, "total_sequence_length": np.array(capacity, np.int32)}


def _common(ids: Ints, positions: Ints) -> StepInputs:
    return {
        "input_ids": ids,
        "logits_index": np.full(ids.shape[0], ids.shape[1] - 1, np.int64),
        "position_ids": positions,
    }


STEPS: dict[Dialect, Callable[[Ints, Ints, Ints, int, int | None], StepInputs]] = {
    "static": static_step,
    "decomposed": decomposed_step,
    "onnxruntime": fused_step,
}
"""Dialect -> what makes a step's inputs from ids int64 [n, seq], positions of the same shape or [3, n, seq], lengths
int64 [n], capacity, window."""
