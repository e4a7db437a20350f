"""The selector graph against its NumPy reference; needs neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from divprune_edge.export.verify.comparison import at_most, none_of
from divprune_edge.export.verify.graphs import open_graph
from divprune_edge.manifest import Check
from divprune_edge.models.selectors import Selector, regret_of
from divprune_edge.models.selectors.divprune import (
    DIVPRUNE,
    cosine_distances,
    max_min_picks,
    replay_regret,
    write_picks,
)

Tokens = npt.NDArray[np.floating[Any]]
Valid = npt.NDArray[np.bool_]

Signals = dict[str, npt.NDArray[Any]]

REGRET = 1e-4
"""Replay regret that two ways to compute the same distances may cause; a random set has far more."""

_CASES = 8
_MERGE = 2e-3
"""Relative and absolute difference of a merged token, a mean of many; half precision needs it all."""


@dataclass(frozen=True)
class TokensCase:
    """One image: tokens [N, D], valid [N], and the signals without their first axis."""

    tokens: Tokens
    valid: Valid
    signals: Signals
    token: int | None = None

    @property
    def looked_at(self) -> Tokens:
        """What is picked by: the first ``token`` values of each row, all if None."""
        return self.tokens[:, : self.token]


def verify_selector(
    selector: Selector,
    candidates: int,
    keep: int,
    width: int,
    dtype: str,
    onnx_path: Path,
    token: int | None = None,
) -> tuple[Check, ...]:
    """Check one selector graph on synthetic tokens.

    Args:
        selector: the algorithm, with the reference.
        candidates: N.
        keep: K.
        width: D.
        dtype: element type of the tokens.
        onnx_path: the graph.
        token: values of a row that it looks at; None: all.
    """
    session = open_graph(onnx_path)
    random = np.random.default_rng(11)
    exact = [
        TokensCase(tokens, valid, _signals(session, random), token)
        for tokens, valid in _exact_cases(random, candidates, keep, width, dtype)
    ]
    everything = np.ones(candidates, dtype=bool)
    clustered = [
        TokensCase(_clustered(random, candidates, width, dtype), everything, _signals(session, random), token)
        for _ in range(_CASES // 2)
    ]
    different = []
    for i, case in enumerate(exact):
        found, wanted = (
            _run(session, case)[1],
            selector.reference(case.looked_at, case.valid, keep, **case.signals),
        )
        if not np.array_equal(found, wanted):
            different.append(f"case {i}: picked {_difference(found, wanted)}")
    checks = [none_of("selection", "exact distances", different, len(exact), "cases")]
    if selector.op_type == DIVPRUNE.op_type:
        checks.append(_shared_matrix(candidates, keep))
    return (*checks, *_end_to_end(session, selector, clustered, keep, "random tokens"))


def check_selection(
    selector: Selector,
    path: Path,
    tokens: Tokens,
    keep: int,
    signals: Signals | None = None,
    valid: Valid | None = None,
    token: int | None = None,
) -> tuple[list[Check], npt.NDArray[Any]]:
    """Check one selector graph on real visual tokens [images, N, D] and, where it needs them, their signals.

    ``valid`` is bool [images, N], all if None. Images with no more than K such rows are not selected from.

    Returns:
        The checks and the kept tokens [images, K, D].
    """
    session = open_graph(path)
    given = {name: (signals or {})[name] for name in selector.signals}
    counted = np.ones(tokens.shape[:2], bool) if valid is None else valid
    cases = [
        TokensCase(rows, counts, {name: value[i] for name, value in given.items()}, token)
        for i, (rows, counts) in enumerate(zip(tokens, counted, strict=True))
    ]
    small = [case.valid.sum() <= keep < len(case.valid) for case in cases]
    large = [case for case, is_small in zip(cases, small, strict=True) if not is_small]
    checks = _end_to_end(session, selector, large, keep, "visual tokens")
    kept = [
        case.tokens[:keep] if is_small else _run(session, case)[0]
        for case, is_small in zip(cases, small, strict=True)
    ]
    return checks, np.stack(kept)


def _run(session: Any, case: TokensCase) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    feed = {"visual_tokens": case.tokens[None], "valid": case.valid[None]}
    given = {value.name for value in session.get_inputs()}
    feed |= {name: value[None] for name, value in case.signals.items() if name in given}
    kept, indices = session.run(["kept_tokens", "kept_indices"], feed)
    return kept[0], indices[0]


def _end_to_end(
    session: Any, selector: Selector, cases: list[TokensCase], keep: int, name: str
) -> list[Check]:
    """The same set, or one that the method could have picked; then the rows of that set, in order, bit for bit.

    A method without a regret may differ in one token of a hundred, where rounding breaks a tie; of merged tokens two in
    a hundred may, where it decides which of two a dropped one joins.
    """
    regret, lost, equal, wrong = 0.0, 0, 0, []
    for i, case in enumerate(cases):
        kept, indices = _run(session, case)
        if not _well_formed(selector, indices, keep, len(case.tokens)):
            wrong.append(f"case {i}: the indices are not {keep} ascending rows")
            regret = float("inf")
            continue
        wanted = selector.reference(case.looked_at, case.valid, keep, **case.signals)
        same = np.array_equal(indices, wanted)
        equal += same
        if selector.merge is None and kept.tobytes() != case.tokens[indices].tobytes():
            wrong.append(f"case {i}: the kept tokens are not the rows that the indices name")
        elif selector.merge is not None and same:
            expected = selector.merge.reference(case.tokens, case.valid, indices, **case.signals)
            near = np.isclose(kept.astype(np.float32), expected.astype(np.float32), rtol=_MERGE, atol=_MERGE)
            other = int(np.count_nonzero(~near.all(axis=1)))
            if other > max(2, keep // 50):
                wrong.append(f"case {i}: {other} merged tokens differ from the reference's")
        if not same and selector.op_type == DIVPRUNE.op_type:
            regret = float(
                np.maximum(regret, replay_regret(cosine_distances(case.looked_at), case.valid, indices))
            )
        elif not same and selector.values is not None:
            found = regret_of(selector, case.looked_at, case.valid, indices, **case.signals)
            regret = float(np.maximum(regret, found / keep))  # sums grow with the picks
        elif not same:
            lost += len(set(wanted.tolist()) - set(indices.tolist()))
    detail = f"{equal} of {len(cases)} sets are those of the reference"
    if lost > max(1, keep * len(cases) // 100):
        wrong.append(f"{lost} of {keep * len(cases)} tokens are not those of the reference")
    return [
        at_most("selection", name, regret, REGRET, unit="regret", detail=detail),
        none_of("selection", f"rows of {name}", wrong, len(cases), "cases"),
    ]


def _well_formed(selector: Selector, indices: npt.NDArray[np.int64], keep: int, candidates: int) -> bool:
    """Whether these are K distinct rows, in ascending order where nothing is merged."""
    if indices.shape != (keep,) or indices.min() < -1 or indices.max() >= candidates:
        return False
    if selector.merge is not None:
        return len(set(indices.tolist())) == keep
    return bool(indices[0] >= 0 and (np.diff(indices) > 0).all())


def _signals(session: Any, random: np.random.Generator) -> Signals:
    """Return made-up signals for a graph's further inputs; attentions are multiples of 2^-14 and exact in sums."""
    signals: Signals = {}
    for value in session.get_inputs():
        if value.name not in ("visual_tokens", "valid"):
            shape = tuple(value.shape[1:])
            if len(shape) == 1:
                share = random.gamma(0.7, size=shape) + 1e-3
                signals[value.name] = (np.ceil(share / share.sum() * 2**14) / 2**14).astype(np.float32)
            else:
                kind = np.float16 if value.type == "tensor(float16)" else np.float32
                signals[value.name] = random.choice([-1.0, 0.5, 1.0], shape).astype(kind)
    return signals


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
