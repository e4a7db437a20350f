"""The graph of a vision tower equals transformers' tower of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from qwen_towers import QWEN2_5, QWEN3, reference_tower, run_graph, run_reference, write_tower

from divprune_edge.export.check.findings import errors
from divprune_edge.export.check.graph import read_graph
from divprune_edge.export.check.lint import lint_graph
from divprune_edge.export.check.tables import table_for
from divprune_edge.export.formats import find_format
from divprune_edge.models.families.qwen_vl.spec import read_qwen_vision

pytest.importorskip("transformers")

# Settings, grid of patches, frames.
Case = tuple[dict[str, Any], tuple[int, int], int]
QWEN3_CASES: list[Case] = [
    ({}, (4, 20), 1),  # 2 x 10 visual tokens
    ({}, (2, 2), 1),
    ({}, (2, 26), 1),
    ({}, (30, 2), 2),
    ({}, (6, 6), 3),
    ({}, (12, 12), 1),  # as many places as patches
    ({}, (14, 10), 1),
    ({"deepstack_visual_indexes": []}, (6, 4), 1),
    ({"deepstack_visual_indexes": [0, 1, 2]}, (6, 4), 2),
    ({"deepstack_visual_indexes": [2]}, (4, 6), 1),
    ({"deepstack_visual_indexes": [1, 8, 16]}, (4, 6), 1),  # two of no layer
    ({"num_heads": 1}, (4, 8), 1),
    ({"num_heads": 8}, (4, 8), 1),
    ({"hidden_size": 36, "num_heads": 3}, (4, 8), 1),
    ({"patch_size": 14}, (4, 6), 1),
    ({"patch_size": 16}, (4, 6), 1),
    ({"patch_size": 8, "temporal_patch_size": 1}, (4, 6), 1),
    ({"spatial_merge_size": 1}, (5, 7), 2),
    ({"spatial_merge_size": 3}, (6, 9), 1),
    ({"hidden_act": "gelu"}, (4, 6), 1),
    ({"hidden_act": "quick_gelu"}, (4, 6), 1),
    ({"hidden_act": "relu"}, (4, 6), 1),
    ({"num_position_embeddings": 1}, (4, 6), 1),
    ({"num_position_embeddings": 40}, (4, 6), 1),  # no square: the last four are never looked up
    ({"num_position_embeddings": 2304}, (10, 34), 1),
    ({"rope_parameters": {"rope_type": "axial", "rope_theta": 100.0}}, (4, 20), 1),
    ({"depth": 1, "deepstack_visual_indexes": [0]}, (4, 6), 1),
]
QWEN2_5_CASES: list[Case] = [
    ({}, (4, 20), 1),  # windows of 4 x 4 visual tokens, of which there are 2 x 10
    ({}, (2, 2), 1),
    ({}, (8, 8), 1),  # one window
    ({}, (16, 24), 1),  # whole windows
    ({}, (10, 8), 1),  # one row more
    ({}, (8, 10), 2),
    ({}, (18, 14), 3),
    ({}, (2, 40), 2),
    ({"window_size": 8}, (6, 10), 1),  # a window is a visual token
    ({"window_size": 31}, (14, 10), 1),  # rounded down
    ({"window_size": 400}, (14, 10), 2),  # larger than the image
    ({"window_size": 112, "patch_size": 14}, (10, 12), 1),
    ({"patch_size": 16}, (6, 6), 1),
    ({"patch_size": 8, "temporal_patch_size": 1}, (6, 6), 1),
    ({"fullatt_block_indexes": []}, (10, 14), 1),
    ({"fullatt_block_indexes": [0, 1, 2]}, (10, 14), 2),
    ({"fullatt_block_indexes": [0, 7, 15]}, (10, 14), 1),
    ({"spatial_merge_size": 1, "window_size": 12}, (5, 7), 2),
    ({"spatial_merge_size": 3, "window_size": 24}, (12, 9), 1),
    ({"num_heads": 1}, (10, 8), 1),
    ({"num_heads": 8}, (10, 8), 1),
    ({"hidden_size": 60, "num_heads": 5}, (10, 8), 1),
    ({"hidden_act": "gelu"}, (10, 8), 1),
    ({"hidden_act": "gelu_pytorch_tanh"}, (10, 8), 1),
    ({"depth": 1, "fullatt_block_indexes": []}, (10, 8), 1),
]
CASES = [(QWEN3 | asked, grid, frames) for asked, grid, frames in QWEN3_CASES]
CASES += [(QWEN2_5 | asked, grid, frames) for asked, grid, frames in QWEN2_5_CASES]


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]['model_type'][:5]}-{case[1]}-{case[2]}")
def test_equals_transformers(case: Case, tmp_path: Path) -> None:
    config, grid, frames = case
    tower, spec = reference_tower(config), read_qwen_vision(config, "qwen3_vl")
    found = run_graph(write_tower(tmp_path, config, tower), spec, grid, frames)
    wanted = run_reference(tower, spec, grid, frames)
    assert len(found) == len(wanted) == 1 + len(spec.beside)
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2_5"])
def test_one_graph_serves_every_grid(config: dict[str, Any], tmp_path: Path) -> None:
    tower, spec = reference_tower(config, seed=1), read_qwen_vision(config, "qwen3_vl")
    path = write_tower(tmp_path, config, tower)
    for grid in ((2, 2), (8, 8), (6, 22)):
        for ours, theirs in zip(run_graph(path, spec, grid), run_reference(tower, spec, grid), strict=True):
            assert error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2_5"])
@pytest.mark.parametrize(("precision", "most"), [("fp16", 0.01), ("int8", 0.2), ("int4", 0.5)])
def test_every_precision(config: dict[str, Any], precision: Any, most: float, tmp_path: Path) -> None:
    config = config | {"hidden_size": 64, "intermediate_size": 64, "num_heads": 4}
    tower, spec = reference_tower(config), read_qwen_vision(config, "qwen3_vl")
    found = run_graph(write_tower(tmp_path, config, tower, find_format(precision, 32)), spec, (4, 20), 2)
    for ours, theirs in zip(found, run_reference(tower, spec, (4, 20), 2), strict=True):
        assert 0 < error(ours, theirs) <= most
        assert ours.dtype == (np.float16 if precision == "fp16" else np.float32)


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2_5"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("tensorrt", ["10.3", "10.16"])
def test_tensorrt_lists_every_operator(
    config: dict[str, Any], precision: Any, tensorrt: str, tmp_path: Path
) -> None:
    path = write_tower(tmp_path, config, reference_tower(config), find_format(precision, 32))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [20]
    assert {node.op_type for node in model.graph.node}.isdisjoint({"Einsum", "If", "Loop"})
    view = read_graph(path, {"frames": 1, "patches": 80, "windows": 3})
    assert errors(lint_graph(view, table_for(tensorrt), file="vision_encoder.onnx")) == []


def test_nodes_are_named_after_modules(tmp_path: Path) -> None:
    model = onnx.load(write_tower(tmp_path, QWEN3, reference_tower(QWEN3)))
    names = {node.name for node in model.graph.node}
    for name in ("blocks.2/attn/qkv", "blocks.0/mlp/linear_fc1", "deepstack_merger_list.1/linear_fc2"):
        assert f"/visual/{name}/MatMul" in names
