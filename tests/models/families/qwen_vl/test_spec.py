"""What a vision config says: defaults, sizes, weights and FLOPs as transformers has them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from qwen_towers import QWEN2_5, QWEN3, reference_tower
from raising import refused

from divprune_edge.models.families.qwen_vl.inputs import encoder_inputs
from divprune_edge.models.families.qwen_vl.spec import read_qwen_vision

QWEN3_8B: dict[str, Any] = {"model_type": "qwen3_vl", "out_hidden_size": 4096}
QWEN3_2B: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [5, 11, 17],
}
QWEN2_5_3B: dict[str, Any] = {"model_type": "qwen2_5_vl", "hidden_size": 1280, "out_hidden_size": 2048}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "qwen3_vl_vision"},
        {"model_type": "qwen2_5_vl_vision"},
        QWEN3_8B,
        QWEN3_2B,
        QWEN2_5_3B,
        QWEN3 | {"deepstack_visual_indexes": []},
        QWEN2_5 | {"spatial_merge_size": 1},
    ],
)
def test_weights_equal_transformers(config: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    kind = config["model_type"].removesuffix("_vision")
    # As the whole's config has it, with its own remedy for old towers' names.
    seen = AutoConfig.for_model(kind, vision_config=dict(config)).vision_config
    with torch.device("meta"):
        tower = (Qwen3VLVisionModel if kind == "qwen3_vl" else Qwen2_5_VisionTransformerPretrainedModel)(seen)
    spec = read_qwen_vision(config, kind)
    assert spec.parameters() == {name: tuple(w.shape) for name, w in tower.state_dict().items()}
    assert (spec.patch, spec.merge, spec.theta) == (seen.patch_size, seen.spatial_merge_size, 10000.0)
    assert spec.width == seen.out_hidden_size
    assert read_qwen_vision({k: v for k, v in config.items() if k != "model_type"}, kind) == spec


def test_well_known_sizes() -> None:
    large, small, windowed = (read_qwen_vision(one, "") for one in (QWEN3_8B, QWEN3_2B, QWEN2_5_3B))
    assert (large.deepstack, large.beside) == ((8, 16, 24), ("deepstack.0", "deepstack.1", "deepstack.2"))
    assert (large.factor, large.side, large.head_dim, large.window) == (32, 48, 72, None)
    assert small.deepstack == (5, 11, 17)
    assert (windowed.factor, windowed.side, windowed.window, windowed.window_patches) == (28, None, 4, 64)
    assert windowed.beside == ()
    assert [i for i in range(32) if not windowed.in_windows(i)] == [7, 15, 23, 31]


@pytest.mark.parametrize("config", [QWEN3, QWEN2_5], ids=["qwen3", "qwen2_5"])
def test_flops_are_those_that_torch_counts(config: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    spec, grid = read_qwen_vision(config, ""), (8, 16)  # two whole windows
    tower = reference_tower(config)
    tower.set_attn_implementation("eager")
    pixels = torch.zeros(grid[0] * grid[1], spec.patch_values)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(pixels, grid_thw=torch.tensor([[1, *grid]]))
    assert spec.flops(128) + spec.merger_flops(128) == counter.get_total_flops()


def test_inputs() -> None:
    assert list(encoder_inputs(read_qwen_vision(QWEN3, ""))) == [
        "pixels",
        "axes",
        "place_rows",
        "place_weights",
    ]
    inputs = encoder_inputs(read_qwen_vision(QWEN2_5, ""))
    assert inputs["pixels"] == ("uint8", ["frames", "patches", 96])
    assert inputs["windows"] == ("int64", ["windows", 64])
    assert list(inputs) == ["pixels", "axes", "windows", "window_of"]
    unwindowed = read_qwen_vision(QWEN2_5 | {"fullatt_block_indexes": [0, 1, 2], "window_size": 1}, "")
    assert list(encoder_inputs(unwindowed)) == ["pixels", "axes"]


def test_theta_in_every_spelling() -> None:
    for said in (
        {"rope_theta": 500},
        {"rope_parameters": {"rope_theta": 500.0}},
        {"rope_scaling": {"type": "default", "rope_theta": 500.0}},
        {"rope_theta": 1, "rope_parameters": {"rope_type": "axial", "rope_theta": 500.0}},
    ):
        assert read_qwen_vision(QWEN3 | said, "").theta == 500.0


@pytest.mark.parametrize(
    ("config", "code", "values"),
    [
        ({"model_type": "qwen2_vl"}, "model-unsupported", ["'qwen2_vl'", "'qwen3_vl_vision'"]),
        (QWEN3 | {"in_channels": 1}, "config-unsupported", ["1 channels"]),
        (QWEN3 | {"patch_size": [16, 14]}, "config-value-invalid", ["patch_size"]),
        (QWEN3 | {"patch_size": 65}, "config-value-invalid", ["patch_size", 65]),
        (QWEN3 | {"depth": 0}, "config-value-invalid", ["depth"]),
        (QWEN3 | {"num_heads": 3}, "config-inconsistent", [32, 3]),
        (QWEN3 | {"num_heads": 16}, "config-inconsistent", ["2 values wide"]),
        (QWEN3 | {"hidden_act": "mish"}, "config-unsupported", ["mish"]),
        (QWEN3 | {"deepstack_visual_indexes": [1, 0]}, "config-unsupported", ["[1, 0]"]),
        (QWEN3 | {"deepstack_visual_indexes": [1, 1]}, "config-unsupported", ["[1, 1]"]),
        (QWEN3 | {"deepstack_visual_indexes": [-1]}, "config-unsupported", ["[-1]"]),
        (QWEN3 | {"deepstack_visual_indexes": [True]}, "config-unsupported", ["[True]"]),
        (QWEN2_5 | {"fullatt_block_indexes": ["1"]}, "config-unsupported", ["fullatt_block_indexes"]),
        (QWEN2_5 | {"window_size": 7}, "config-inconsistent", ["window_size", 7, 8]),
        (QWEN2_5 | {"window_size": 8000}, "config-inconsistent", [8000]),
        (QWEN3 | {"rope_parameters": {"rope_type": "yarn"}}, "config-unsupported", ["yarn"]),
        (QWEN3 | {"rope_theta": 0}, "config-value-invalid", ["rope_theta"]),
    ],
)
def test_refused(config: dict[str, Any], code: str, values: list[object]) -> None:
    with refused(code, *values):
        read_qwen_vision(config, "qwen3_vl")
