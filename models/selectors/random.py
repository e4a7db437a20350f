"""Random: the baseline that every method has to beat.

A fixed order of the N tokens, drawn once from a seed and baked into the graph: the first K valid tokens of it are
kept, the same for every image. The order is by SHA-256, so that it is the same wherever it is drawn.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.models.graph import Ops
from divprune_edge.models.selectors.ranking import constant_values, top_picks, write_ascending, write_top
from divprune_edge.models.selectors.selector import Indices, Selector, Tokens, Valid, Values

SEED = 0


def random_scores(candidates: int) -> npt.NDArray[np.float32]:
    """Return float32 [N]: N - 1 for the first token in the drawn order, 0 for the last."""
    order = sorted(range(candidates), key=lambda i: hashlib.sha256(f"{SEED}:{i}".encode()).digest())
    scores = np.empty(candidates, np.float32)
    scores[order] = np.arange(candidates - 1, -1, -1)
    return scores


def random_picks(tokens: Tokens, valid: Valid, keep: int) -> Indices:
    """Return the first ``keep`` valid rows of the drawn order."""
    return top_picks(random_scores(valid.size), valid, keep)


def write_random(ops: Ops, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
    """Write the same; the tokens' values do not matter."""
    scores = ops.constant(random_scores(candidates), "float32")
    return write_ascending(ops, write_top(ops, scores, valid, keep), keep)


def _values(tokens: Tokens, valid: Valid, keep: int) -> Values:
    return constant_values(random_scores(valid.size))


RANDOM = Selector(
    name="random",
    op_type="RandomSelection",
    citation="baseline",
    picks=random_picks,
    body=write_random,
    parameters={"seed": SEED},
    values=_values,
)
"""K random tokens, the same for every image."""
