"""Every activation that a config may name, against transformers' function of that name."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from exporting import open_session
from raising import refused

from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.activation import activate
from divprune_edge.models.activations import CANONICAL, activation


@pytest.mark.parametrize("name", CANONICAL)
def test_it_is_that_of_transformers(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers.activations import ACT2FN

    g = GraphBuilder("activation")
    x = g.input("x", "float32", ["n"])
    g.output(activate(g, x, activation(name, "here"), "float32"), "y", "float32", ["n"])
    values = np.concatenate([np.linspace(-12, 12, 999), [0.0, -80.0, 80.0]]).astype(np.float32)
    found = open_session(ir.to_proto(g.model(20)).SerializeToString()).run(None, {"x": values})[0]
    wanted = ACT2FN[name](torch.from_numpy(values)).numpy()
    assert np.abs(found - wanted).max() <= 1e-6 * max(1.0, float(np.abs(wanted).max()))


def test_an_unknown_one_is_refused() -> None:
    with refused("config-unsupported", "config.json", "hidden_act", "mish", "quick_gelu"):
        activation("mish", "text hidden_act")
