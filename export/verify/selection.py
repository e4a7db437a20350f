"""The selector graph against its NumPy reference; needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.comparison import at_most, none_of
from divprune_edge.export.verify.graphs import open_graph
from divprune_edge.manifest import Check
from divprune_edge.models.selectors import Selector
from divprune_edge.models.selectors.divprune import (
    DIVPRUNE,
    cosine_distances,
    max_min_picks,
    replay_regret,
    write_picks,
)

Tokens = npt.NDArray[np.floating[Any]]
Valid = npt.NDArray[np.bool_]

REGRET = 1e-4
"""Replay regret that two ways to compute the same distances may cause; a random set has far more."""

_CASES = 8


def verify_selector(
    selector: Selector, candidates: int, keep: int, width: int, dtype: str, onnx_path: Path
) -> tuple[Check, ...]:
    """Check one selector graph on synthetic tokens.

    Args:
        selector: the algorithm, with the reference.
        candidates: N.
        keep: K.
        width: D.
        dtype: element type of the tokens.
        onnx_path: the graph.
    """
    session = open_graph(onnx_path)
    random = np.random.default_rng(11)
    exact = list(_exact_cases(random, candidates, keep, width, dtype))
    clustered = [_clustered(random, candidates, width, dtype) for _ in range(_CASES // 2)]
    checks = [
        none_of(
            "selection",
            "exact distances",
            [
                f"case {i}: picked {_difference(_run(session, tokens, valid)[1], wanted)}"
                for i, (tokens, valid) in enumerate(exact)
                if not np.array_equal(
                    _run(session, tokens, valid)[1], wanted := selector.reference(tokens, valid, keep)
                )
            ],
            len(exact),
            "cases",
        )
    ]
    if selector.op_type == DIVPRUNE.op_type:
        checks.append(_shared_matrix(candidates, keep))
    everything = np.ones(candidates, dtype=bool)
    checks += _end_to_end(
        session, selector, [(tokens, everything) for tokens in clustered], keep, "random tokens"
    )
    return tuple(checks)


def check_selection(
    selector: Selector, path: Path, tokens: Tokens, keep: int
) -> tuple[list[Check], npt.NDArray[Any]]:
    """Check one selector graph on real visual tokens [pictures, N, D].

    Returns:
        The checks and the kept tokens [pictures, K, D].
    """
    session = open_graph(path)
    everything = np.ones(tokens.shape[1], dtype=bool)
    checks = _end_to_end(session, selector, [(rows, everything) for rows in tokens], keep, "visual tokens")
    kept = session.run(["kept_tokens"], {"visual_tokens": tokens, "valid": np.ones(tokens.shape[:2], bool)})[
        0
    ]
    return checks, kept


def _run(session: Any, tokens: Tokens, valid: Valid) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    kept, indices = session.run(
        ["kept_tokens", "kept_indices"], {"visual_tokens": tokens[None], "valid": valid[None]}
    )
    return kept[0], indices[0]


def _end_to_end(
    session: Any, selector: Selector, cases: list[tuple[Tokens, Valid]], keep: int, name: str
) -> list[Check]:
    """The same set, or one that max-min could have picked; the rows of that set, in order, bit for bit."""
    regret, equal, wrong = 0.0, 0, []
    for i, (tokens, valid) in enumerate(cases):
        kept, indices = _run(session, tokens, valid)
        if (
            indices.shape != (keep,)
            or np.any(np.diff(indices) <= 0)
            or indices[0] < 0
            or indices[-1] >= len(tokens)
        ):
            wrong.append(f"case {i}: the indices are not {keep} ascending rows")
            regret = float("inf")
            continue
        if kept.tobytes() != tokens[indices].tobytes():
            wrong.append(f"case {i}: the kept tokens are not the rows that the indices name")
        if np.array_equal(indices, selector.reference(tokens, valid, keep)):
            equal += 1
        else:
            regret = float(np.maximum(regret, replay_regret(cosine_distances(tokens), valid, indices)))
    detail = f"{equal} of {len(cases)} sets are those of the reference"
    return [
        at_most("selection", name, regret, REGRET, unit="regret", detail=detail),
        none_of("selection", f"rows of {name}", wrong, len(cases), "cases"),
    ]


def _shared_matrix(candidates: int, keep: int) -> Check:
    """Max-min on one distance matrix, by the graph's rule and by the reference: the same picks, in order."""
    import onnx_ir as ir

    from divprune_edge.export.selector import build_selection_check

    model = build_selection_check(lambda g, d, v: write_picks(g, d, v, candidates, keep), candidates)
    session = open_graph(ir.to_proto(model).SerializeToString())
    random = np.random.default_rng(13)
    different = []
    for i in range(_CASES):
        tokens, valid = _clustered(random, candidates, 16, "float32"), _valid(random, candidates, keep)
        if i % 2:
            _spoil(random, tokens)
        distances = cosine_distances(tokens)
        found = session.run(None, {"distances": distances[None], "valid": valid[None]})[0][0]
        wanted = max_min_picks(distances, valid, keep)
        if not np.array_equal(found, wanted):
            different.append(f"case {i}: picked {_difference(found, wanted)}")
    return none_of("selection", "shared matrix", different, _CASES, "cases")


def _exact_cases(
    random: np.random.Generator, candidates: int, keep: int, width: int, dtype: str
) -> Iterator[tuple[Tokens, Valid]]:
    """Yield tokens whose cosine distances are exact in float32, however they are summed.

    Rows of +-1 in 4^k columns have a norm of 2^k and integer dot products. Ties and duplicates abound.
    """
    columns = 1
    while columns * 4 <= min(width, 64):
        columns *= 4
    for i in range(_CASES):
        tokens = np.zeros((candidates, width), dtype)
        tokens[:, :columns] = random.choice([-1, 1], (candidates, columns))
        if i % 2:
            _spoil(random, tokens)
        yield tokens, _valid(random, candidates, keep)


def _clustered(random: np.random.Generator, candidates: int, width: int, dtype: str) -> Tokens:
    """Return tokens around a few centres, as neighbouring patches are."""
    centres = random.normal(size=(max(2, candidates // 16), width))
    tokens = (
        centres[random.integers(0, len(centres), candidates)] + random.normal(size=(candidates, width)) * 0.3
    )
    return tokens.astype(dtype)


def _spoil(random: np.random.Generator, tokens: Tokens) -> None:
    """Make some rows duplicates of others, and some zero."""
    rows = len(tokens)
    tokens[random.integers(0, rows, rows // 4)] = tokens[random.integers(0, rows, rows // 4)]
    tokens[random.integers(0, rows, rows // 16)] = 0


def _valid(random: np.random.Generator, candidates: int, keep: int) -> Valid:
    valid = np.ones(candidates, dtype=bool)
    dropped = random.integers(0, candidates - keep + 1)
    valid[random.permutation(candidates)[:dropped]] = False
    return valid


def _difference(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    extra, lost = (
        sorted(set(found.tolist()) - set(wanted.tolist())),
        sorted(set(wanted.tolist()) - set(found.tolist())),
    )
    return f"{extra} instead of {lost}" if extra or lost else "the same rows in another order"
