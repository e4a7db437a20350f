"""Selector graphs: the reference's picks exactly, ragged batches, the identity, what a plugin needs to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from exporting import open_session

from divprune_edge.export.selector import DOMAIN, build_selection_check, build_selector, selector_id
from divprune_edge.export.writer import write_graph
from divprune_edge.models.selectors.divprune import (
    DIVPRUNE,
    cosine_distances,
    max_min_picks,
    max_min_select,
    replay_regret,
    write_picks,
)

SIZES = [
    (2, 1), (3, 2), (5, 1), (5, 4), (7, 3), (8, 7), (9, 9), (12, 6), (16, 1), (16, 2),
    (16, 15), (25, 9), (25, 24), (31, 30), (33, 5), (40, 20), (48, 47), (64, 7), (64, 33), (100, 10),
]  # fmt: skip
"""(N, K)"""
BATCH = 50


def hard_tokens(random: np.random.Generator, n: int, width: int, case: int) -> Any:
    """Return float32 [n, width]; three cases of four have duplicates, ties or zero rows."""
    kind = case % 4
    if kind == 0:
        return random.normal(size=(n, width)).astype(np.float32)
    if kind == 1:  # ties: small integers
        return random.integers(-2, 3, (n, width)).astype(np.float32)
    tokens = random.normal(size=(n, width)).astype(np.float32)
    copies = random.integers(0, n, max(1, n // 3))
    tokens[random.integers(0, n, len(copies))] = tokens[copies]
    if kind == 3:
        tokens[random.integers(0, n, max(1, n // 5))] = 0
    return tokens


def some_valid(random: np.random.Generator, n: int, keep: int) -> Any:
    valid = np.ones(n, bool)
    valid[random.permutation(n)[: random.integers(0, n - keep + 1)]] = False
    return valid


def selector_session(folder: Path, n: int, keep: int, width: int, dtype: str = "float32") -> Any:
    graph = write_graph(build_selector(DIVPRUNE, n, keep, width, dtype), folder, "selector.onnx")
    onnx.checker.check_model(str(folder / graph.file), full_check=True)
    return open_session(folder / graph.file)


@pytest.mark.parametrize(("n", "keep"), SIZES)
def test_fifty_shared_matrices_give_the_same_picks(n: int, keep: int) -> None:
    """20 sizes x 50 cases = 1000, in the order of picking."""
    random = np.random.default_rng(1000 * n + keep)
    tokens = [hard_tokens(random, n, 6, case) for case in range(BATCH)]
    distances = np.stack([cosine_distances(rows) for rows in tokens])
    valid = np.stack([some_valid(random, n, keep) if case % 2 else np.ones(n, bool) for case in range(BATCH)])
    model = build_selection_check(lambda g, d, v: write_picks(g, d, v, n, keep), n)
    picks = open_session(ir.to_proto(model).SerializeToString()).run(
        None, {"distances": distances, "valid": valid}
    )[0]
    wanted = np.stack([max_min_picks(d, v, keep) for d, v in zip(distances, valid, strict=True)])
    assert picks.shape == (BATCH, keep)
    assert np.array_equal(picks, wanted)


def test_a_thousand_cases() -> None:
    assert len(SIZES) * BATCH == 1000


@pytest.mark.parametrize(("n", "keep", "width"), [(25, 9, 40), (36, 1, 8), (36, 35, 8), (64, 8, 16)])
def test_ragged_batch_end_to_end(tmp_path: Path, n: int, keep: int, width: int) -> None:
    """Every row of a batch is selected by itself, with its own valid rows."""
    session = selector_session(tmp_path, n, keep, width)
    random = np.random.default_rng(n)
    tokens = np.stack([hard_tokens(random, n, width, case) for case in range(8)])
    valid = np.stack([some_valid(random, n, keep) for _ in range(8)])
    kept, indices = session.run(None, {"visual_tokens": tokens, "valid": valid})
    for i in range(8):
        assert replay_regret(cosine_distances(tokens[i]), valid[i], indices[i]) <= 1e-4
        assert (np.diff(indices[i]) > 0).all()
        assert valid[i][indices[i]].all()
        assert kept[i].tobytes() == tokens[i][indices[i]].tobytes()
        alone = session.run(None, {"visual_tokens": tokens[i : i + 1], "valid": valid[i : i + 1]})
        assert np.array_equal(alone[1][0], indices[i])


def test_exact_distances_give_exact_picks(tmp_path: Path) -> None:
    """Rows of +-1 in 16 columns: norms and dot products are exact, so nothing may differ, ties included."""
    session = selector_session(tmp_path, 49, 12, 16)
    random = np.random.default_rng(0)
    for _ in range(40):
        tokens = random.choice([-1, 1], (49, 16)).astype(np.float32)
        valid = some_valid(random, 49, 12)
        indices = session.run(["kept_indices"], {"visual_tokens": tokens[None], "valid": valid[None]})[0]
        assert np.array_equal(indices[0], max_min_select(tokens, valid, 12))


def test_values_of_invalid_rows_do_not_count(tmp_path: Path) -> None:
    session = selector_session(tmp_path, 25, 9, 16)
    random = np.random.default_rng(4)
    tokens = random.normal(size=(1, 25, 16)).astype(np.float32)
    valid = np.ones((1, 25), bool)
    valid[0, [0, 3, 24]] = False
    wanted = session.run(["kept_indices"], {"visual_tokens": tokens, "valid": valid})[0]
    for value in (0.0, 1e4, -3.0):
        tokens[0, [0, 3, 24]] = value
        found = session.run(["kept_indices"], {"visual_tokens": tokens, "valid": valid})[0]
        assert np.array_equal(found, wanted)


def test_all_tokens_are_the_identity(tmp_path: Path) -> None:
    session = selector_session(tmp_path, 25, 25, 8)
    model = onnx.load(tmp_path / "selector.onnx")
    assert not model.functions
    assert DOMAIN not in {opset.domain for opset in model.opset_import}
    tokens = np.random.default_rng(0).normal(size=(3, 25, 8)).astype(np.float32)
    kept, indices = session.run(None, {"visual_tokens": tokens, "valid": np.ones((3, 25), bool)})
    assert np.array_equal(kept, tokens)
    assert np.array_equal(indices, np.tile(np.arange(25), (3, 1)))


def test_float16_tokens_are_compared_in_float32(tmp_path: Path) -> None:
    session = selector_session(tmp_path, 64, 16, 32, "float16")
    tokens = (np.random.default_rng(5).normal(size=(2, 64, 32)) * 40).astype(np.float16)
    kept, indices = session.run(None, {"visual_tokens": tokens, "valid": np.ones((2, 64), bool)})
    assert kept.dtype == np.float16
    for i in range(2):
        assert np.array_equal(indices[i], max_min_select(tokens[i], np.ones(64, bool), 16))
        assert kept[i].tobytes() == tokens[i][indices[i]].tobytes()


def test_a_plugin_can_take_the_node(tmp_path: Path) -> None:
    """One node of the custom domain, all inputs wired, with its budget and the plugin's name tags."""
    selector_session(tmp_path, 25, 9, 16)
    model = onnx.load(tmp_path / "selector.onnx")
    (node,) = model.graph.node
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.domain, node.op_type) == (DOMAIN, "MaxMinDiversity")
    assert list(node.input) == ["visual_tokens", "valid"]
    assert list(node.output) == ["kept_tokens", "kept_indices"]
    assert attributes == {"k": 9, "plugin_version": b"1", "plugin_namespace": b""}
    (function,) = model.functions
    assert (function.domain, function.name) == (DOMAIN, "MaxMinDiversity")
    assert {n.domain for n in function.node} == {""}
    shapes = {
        o.name: [d.dim_value or d.dim_param for d in o.type.tensor_type.shape.dim] for o in model.graph.output
    }
    assert shapes == {"kept_tokens": ["batch", 9, 16], "kept_indices": ["batch", 9]}


def test_the_id_says_algorithm_and_budget() -> None:
    assert selector_id("divprune", 58) == "divprune-58"
