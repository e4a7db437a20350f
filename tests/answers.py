"""Answers against each other, and against what another library decodes greedily."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from divprune_edge.runtime.pipeline import Answer


def same(found: Answer, wanted: Answer) -> None:
    assert found.token_ids == wanted.token_ids
    assert (found.answer, found.finish_reason) == (wanted.answer, wanted.finish_reason)
    assert (found.prompt_tokens, found.image_tokens) == (wanted.prompt_tokens, wanted.image_tokens)
    assert np.array_equal(found.kept_indices, wanted.kept_indices)


def agree(found: Sequence[int], tokens: Sequence[int], margins: Sequence[float]) -> None:
    """Only a tie within the arithmetic's noise may fall the other way; then the paths part.

    ``margins`` are how much larger than the second the logits of ``tokens`` are.
    """
    for step, (got, wanted, margin) in enumerate(zip(found, tokens, margins, strict=True)):
        if got != wanted:
            assert margin < 1e-3, f"step {step}: {got} instead of {wanted}"
            break
