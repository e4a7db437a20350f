"""Rotary tables equal transformers', and what cannot be read is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from raising import refused

from divprune_edge.models.rope import RopeSpec, read_rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "theta": {"rope_theta": 500000.0},
    "linear, old spelling": {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 777.0, "factor": 3.0}},
    "llama3, old spelling": {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    "llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 10000.0}},
    "nothing scaled": {"rope_scaling": None, "rope_theta": 123.0},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head_dim", [6, 64, 128])
def test_tables_equal_transformers(name: str, head_dim: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    positions, heads = 1024, 4
    sizes = {"hidden_size": heads * head_dim, "num_attention_heads": heads, "head_dim": head_dim}
    config = LlamaConfig(max_position_embeddings=positions, **sizes, **CONFIGS[name])
    wanted = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(positions)[None])
    spec = read_rope(CONFIGS[name], 10000.0)
    for found, table in zip(spec.tables(head_dim, positions), wanted, strict=True):
        assert found.dtype == np.float32
        assert found.shape == (positions, head_dim // 2)
        # Frequencies may differ in the last bit, and an angle is up to a thousand of them.
        assert np.abs(found - table[0, :, : head_dim // 2].numpy()).max() <= positions * 2.0**-22


def test_kinds_differ() -> None:
    tables = [read_rope(config, 10000.0).tables(64, 512)[0] for config in CONFIGS.values()]
    for i, a in enumerate(tables):
        assert all(np.abs(a - b).max() > 1e-2 for b in tables[:i])


def test_default_theta() -> None:
    assert read_rope({}, 1e6) == RopeSpec(1e6)


@pytest.mark.parametrize("kind", ["dynamic", "yarn", "longrope"])
def test_other_scalings_are_refused(kind: str) -> None:
    with refused("config-unsupported", kind):
        read_rope({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, 10000.0)


@pytest.mark.parametrize("lost", ["factor", "low_freq_factor", "high_freq_factor"])
def test_a_lost_parameter_is_named(lost: str) -> None:
    parameters = {key: value for key, value in LLAMA3.items() if key != lost}
    with refused("config-value-invalid", "llama3", lost):
        read_rope({"rope_parameters": parameters}, 10000.0)


def test_partial_rotation_is_refused() -> None:
    with refused("config-unsupported", "partial_rotary_factor", 0.5):
        read_rope({"partial_rotary_factor": 0.5}, 10000.0)
