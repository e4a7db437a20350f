"""Verification of the selector: wrong rules, wrong rows, wrong ties; and a right one passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import run_code
from exporting import export, failures

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.selector import build_selector
from divprune_edge.export.verify import verify_selector
from divprune_edge.export.writer import write_graph
from divprune_edge.models.selectors.divprune import DIVPRUNE, write_distances, write_picks
from divprune_edge.models.selectors.divprune import write_selection as exact_selection
from divprune_edge.models.selectors.merging import write_join_nearest, write_rows
from divprune_edge.models.selectors.spread import SPREAD_MERGE


def ascending(ops: Any, indices: Any, keep: int) -> Any:
    return ops.ops("TopK", indices, ops.constant([keep]), outputs=2, axis=1, largest=0, sorted=1)[0]


def next_best_instead_of_the_last(ops: Any, tokens: Any, valid: Any, n: int, keep: int) -> Any:
    """K - 1 real picks and the one that would have come after the K-th."""
    picks = write_picks(ops, write_distances(ops, tokens), valid, n, keep + 1)
    chosen = ops.op("Gather", picks, ops.constant([*range(keep - 1), keep]), axis=1)
    return ascending(ops, chosen, keep)


def first_pick_twice(ops: Any, tokens: Any, valid: Any, n: int, keep: int) -> Any:
    picks = write_picks(ops, write_distances(ops, tokens), valid, n, keep)
    chosen = ops.op("Gather", picks, ops.constant([*range(keep - 1), 0]), axis=1)
    return ascending(ops, chosen, keep)


def neighbours(ops: Any, tokens: Any, valid: Any, n: int, keep: int) -> Any:
    """Every index one too high, the last one wrapped into range."""
    indices = ops.op("Add", exact_selection(ops, tokens, valid, n, keep), ops.constant(1))
    indices = ops.op("Mod", indices, ops.constant(n))
    return ascending(ops, indices, keep)


def in_order_of_picking(ops: Any, tokens: Any, valid: Any, n: int, keep: int) -> Any:
    return write_picks(ops, write_distances(ops, tokens), valid, n, keep)


def padding_counts(ops: Any, tokens: Any, valid: Any, n: int, keep: int) -> Any:
    return exact_selection(ops, tokens, ops.op("Or", valid, ops.op("Not", valid)), n, keep)


def last_of_a_tie(ops: Any, tokens: Any, valid: Any, n: int, keep: int) -> Any:
    backwards = ops.constant(np.arange(n)[::-1].copy())
    turned = [ops.op("Gather", value, backwards, axis=1) for value in (tokens, valid)]
    indices = ops.op("Sub", ops.constant(n - 1), exact_selection(ops, *turned, n, keep))
    return ascending(ops, indices, keep)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (next_best_instead_of_the_last, "selection: visual tokens"),
        (first_pick_twice, "selection: rows of visual tokens"),
        (neighbours, "selection: visual tokens"),
        (in_order_of_picking, "selection: rows of visual tokens"),
        (padding_counts, "selection: exact distances"),
        (last_of_a_tie, "selection: exact distances"),
    ],
)
def test_selection_is_wrong(plan: ExportPlan, tmp_path: Path, body: Any, expected: str) -> None:
    wrong = dataclasses.replace(plan, selector=dataclasses.replace(DIVPRUNE, body=body))
    found = failures(plan, export(wrong, tmp_path / "bundle").folder)
    assert expected in found
    assert "selection: exact distances" in found


def test_kept_tokens_are_not_those_of_the_indices(plan: ExportPlan, staged: Path) -> None:
    def shift(model: Any) -> None:
        (function,) = model.functions
        gather = next(node for node in function.node if "kept_tokens" in node.output)
        gather.input[0] = "shifted"
        position = list(function.node).index(gather)
        nudge = [
            onnx.helper.make_node("Constant", [], ["tiny"], value_float=1e-7),
            onnx.helper.make_node("Add", ["visual_tokens", "tiny"], ["shifted"]),
        ]
        for i, node in enumerate(nudge):
            function.node.insert(position + i, node)

    path = staged / "selectors" / "divprune-9.onnx"
    model = onnx.load(path)
    shift(model)
    onnx.save(model, path)
    assert {"selection: rows of visual tokens", "selection: rows of random tokens"} <= failures(plan, staged)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("n", "keep", "width"), [(25, 9, 40), (25, 1, 40), (25, 24, 40), (25, 25, 40), (2, 1, 3)]
)
def test_a_right_selector_passes(tmp_path: Path, n: int, keep: int, width: int, dtype: str) -> None:
    write_graph(build_selector(DIVPRUNE, n, keep, width, dtype), tmp_path, "selector.onnx")
    checks = verify_selector(DIVPRUNE, n, keep, width, dtype, tmp_path / "selector.onnx")
    assert [check for check in checks if not check.passed] == []
    assert {check.name for check in checks} >= {"exact distances", "shared matrix", "random tokens"}


def test_selectors_are_checked_without_torch(tmp_path: Path) -> None:
    write_graph(build_selector(DIVPRUNE, 25, 9, 16, "float32"), tmp_path, "selector.onnx")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from divprune_edge.export.verify import verify_selector\n"
        "from divprune_edge.models.selectors.divprune import DIVPRUNE\n"
        f"path = Path({str(tmp_path / 'selector.onnx')!r})\n"
        "checks = verify_selector(DIVPRUNE, 25, 9, 16, 'float32', path)\n"
        "assert all(check.passed for check in checks)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    run_code(code)


def drop_the_rest(ops: Any, tokens: Any, valid: Any, n: int, keep: int, picks: Any) -> Any:
    return write_rows(ops, ops.cast(tokens, "float32"), picks)


def join_the_next_one(ops: Any, tokens: Any, valid: Any, n: int, keep: int, picks: Any) -> Any:
    """What is merged lies one row too far."""
    merged = write_join_nearest(ops, tokens, valid, n, keep, picks)
    return ops.op("Gather", merged, ops.constant(np.roll(np.arange(keep), 1)), axis=1)


@pytest.mark.parametrize("body", [drop_the_rest, join_the_next_one])
def test_what_is_merged_is_wrong(tmp_path: Path, body: Any) -> None:
    assert SPREAD_MERGE.merge is not None
    wrong = dataclasses.replace(SPREAD_MERGE, merge=dataclasses.replace(SPREAD_MERGE.merge, body=body))
    for selector, passed in ((SPREAD_MERGE, True), (wrong, False)):
        file = write_graph(build_selector(selector, 144, 16, 32, "float32"), tmp_path, f"{passed}.onnx").file
        checks = verify_selector(SPREAD_MERGE, 144, 16, 32, "float32", tmp_path / file)
        assert all(check.passed for check in checks) is passed
