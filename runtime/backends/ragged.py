"""Ids of several sequences as one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from divprune_edge.errors import UserError

_PADDING = 0
"""Any row of the vocabulary: what padding computes is never read."""


def padded(
    ids: Sequence[Sequence[int]], *, left: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ids int64 [sequences, longest], padded on one side, and how many are real, int64 [sequences]."""
    counts = np.array([len(row) for row in ids], np.int64)
    matrix = np.full((len(ids), int(counts.max())), _PADDING, np.int64)
    for row, new, count in zip(matrix, ids, counts, strict=True):
        row[row.size - count if left else 0 :][:count] = new
    return matrix, counts


def check_context(total: int, context: int) -> None:
    """Check that a sequence of ``total`` tokens fits.

    Raises:
        UserError: it does not.
    """
    if total > context:
        raise UserError(
            f"The sequence would have {total} tokens, but the model's context holds {context}.",
            code="sequence-too-long",
        )
