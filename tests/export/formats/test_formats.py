"""Each format against NumPy: the graph computes with exactly the weights that the file holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import Bundle, Language, close, export, failures, images, open_session, plan_of, see, select

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.formats import Format, find_format
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.linear import linear
from divprune_edge.export.quantise import INT4, INT8_PAIRS, dequantise, quantise
from divprune_edge.export.verify import verify_bundle
from divprune_edge.export.weights import Weights
from divprune_edge.export.writer import write_graph

NAME = "model.language_model.layers.0.mlp.up_proj"

precisions = pytest.mark.parametrize("precision", ["int8", "int4", "vision=int8,language=int4"])


def one_layer(folder: Path, checkpoint: Checkpoint, format: Format, *, gated: bool = False) -> Any:
    """Return a session of ``x [batch, seq, 64] -> y``, one linear layer of the checkpoint."""
    g = GraphBuilder("one_layer")
    x = g.input("x", "float32", ["batch", "seq", 64])
    weights = Weights(checkpoint, "", format)
    g.output(
        linear(g, x, weights, NAME, gated=gated),
        "y",
        "float32",
        ["batch", "seq", weights.shape(f"{NAME}.weight")[0]],
    )
    write_graph(g.model(21, domains=format.domains), folder, "layer.onnx")
    return open_session(folder / "layer.onnx")


@pytest.fixture
def layer(quantisable: Callable[..., Path]) -> tuple[Checkpoint, Any]:
    checkpoint = Checkpoint(quantisable(), "tiny")
    return checkpoint, checkpoint.read(f"{NAME}.weight")


def rows(seed: int = 1) -> Any:
    x = np.random.default_rng(seed).standard_normal((2, 5, 64)).astype(np.float32)
    x[1, 2] *= 100  # one token with large values
    x[0, 3] = 0
    return x


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_int8_is_the_arithmetic_that_it_says(
    tmp_path: Path, layer: tuple[Checkpoint, Any], fused: bool, gated: bool
) -> None:
    checkpoint, weight = layer
    x = np.maximum(rows(), -0.2) if gated else rows()
    zero = 24 if gated else 128
    (y,) = one_layer(tmp_path, checkpoint, find_format("int8", 32, fused=fused), gated=gated).run(
        None, {"x": x}
    )
    values, scales = quantise(weight, 64, INT8_PAIRS)
    above, below = x.max(axis=-1, keepdims=True), -x.min(axis=-1, keepdims=True)
    steps = np.maximum(np.maximum(above / (255 - zero), below / zero), np.finfo(np.float32).tiny)
    integers = np.rint(x / steps)
    assert (integers + zero >= 0).all() and (integers + zero <= 255).all()
    wanted = integers @ values.T.astype(np.float64) * steps * scales[:, 0]
    # A tie may round either way in float32: one level of one activation.
    assert np.abs(y - wanted).max() <= (steps * np.abs(values).max() * scales.max()).max() * 1.01
    assert np.median(np.abs(y - wanted) / (np.abs(wanted) + 1e-6)) < 1e-5
    assert np.isfinite(y).all() and not y[0, 3].any()


def test_int8_has_finer_steps_behind_a_gate(tmp_path: Path, layer: tuple[Checkpoint, Any]) -> None:
    checkpoint, weight = layer
    x = np.maximum(np.random.default_rng(3).standard_normal((1, 200, 64)).astype(np.float32) * 2, -0.2)
    values, scales = quantise(weight, 64, INT8_PAIRS)
    wanted = x @ dequantise(values, scales).T
    errors = []
    for gated in (False, True):
        (y,) = one_layer(tmp_path, checkpoint, find_format("int8", 32), gated=gated).run(None, {"x": x})
        errors.append(np.linalg.norm(y - wanted))
    assert errors[1] < 0.65 * errors[0]


def test_int8_keeps_a_token_from_blurring_the_others(tmp_path: Path, layer: tuple[Checkpoint, Any]) -> None:
    checkpoint, _ = layer
    session = one_layer(tmp_path, checkpoint, find_format("int8", 32))
    x = rows()
    (together,) = session.run(None, {"x": x})
    (alone,) = session.run(None, {"x": x[1:, :2]})
    assert (together[1, :2] == alone[0]).all()


def test_int8_is_exact_at_the_extremes(tmp_path: Path, quantisable: Callable[..., Path]) -> None:
    """All weights and activations at their largest: kernels that saturate in 16 bits would be far off."""
    checkpoint = Checkpoint(quantisable(), "tiny")
    checkpoint.read = lambda name: np.ones((128, 64), np.float32)  # type: ignore[method-assign]
    (y,) = one_layer(tmp_path, checkpoint, find_format("int8", 32)).run(
        None, {"x": np.ones((1, 3, 64), np.float32)}
    )
    # A step is wider by 1e-4 than the bound needs; see INT8_PAIRS.
    assert np.allclose(y, 64, rtol=1e-4)


@pytest.mark.parametrize("block", [32, 64])
def test_int4_multiplies_the_dequantised_weight(
    tmp_path: Path, layer: tuple[Checkpoint, Any], block: int
) -> None:
    checkpoint, weight = layer
    x = rows()
    (y,) = one_layer(tmp_path, checkpoint, find_format("int4", block)).run(None, {"x": x})
    wanted = x @ dequantise(*quantise(weight, block, INT4)).T
    # The fused kernel rounds activations to 8 bits, block by block.
    size = np.abs(x).max(axis=-1, keepdims=True) * np.abs(weight).max() * np.sqrt(64)
    assert (np.abs(y - wanted) <= 0.02 * size + 1e-6).all()


@precisions
@pytest.mark.parametrize("tied", [False, True])
def test_quantised_bundles_verify(precision: str, tied: bool, quantised: Callable[..., Bundle]) -> None:
    bundle = quantised(precision, tied)
    result = verify_bundle(bundle.plan, bundle.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    costs = [check for check in result.checks if check.name == "cost of the precision"]
    assert [check.stage for check in costs] == ["vision", "language"]
    assert all(check.limit is None and check.value > 0 for check in costs)


@precisions
def test_the_manifest_says_what_each_graph_is(precision: str, quantised: Callable[..., Bundle]) -> None:
    manifest = quantised(precision).manifest
    assert manifest.precision == precision
    assert (manifest.vision_encoder.precision, manifest.language_model.precision) == {
        "int8": ("int8", "int8"),
        "int4": ("int4", "int4"),
    }.get(precision, ("int8", "int4"))
    assert manifest.block_size == (None if precision == "int8" else 32)
    assert manifest.token_dtype == manifest.language_model.cache_dtype == "float32"


def test_int8_stays_close_to_float(quantised: Callable[..., Bundle]) -> None:
    found, wanted = quantised("int8"), quantised("fp32")
    pixels = images(wanted)
    kept, _ = select(wanted, see(wanted, pixels))
    assert close(see(found, pixels), see(wanted, pixels), 0.1)
    ids = [1, 5, 7, *range(wanted.rows, wanted.rows + kept.shape[1]), 9, 8]
    (a, _), (b, _) = (Language(bundle).chunks(ids, kept, []) for bundle in (found, wanted))
    assert close(a, b, 0.15)


@pytest.mark.parametrize(("precision", "suffix"), [("int8", ".int8"), ("int4", ".int4")])
def test_a_swapped_weight_in_few_bits_is_found(
    precision: str, suffix: str, quantisable: Callable[..., Path], tmp_path: Path
) -> None:
    plan = plan_of(quantisable(), precision=precision)
    bundle = export(plan, tmp_path / "bundle")
    data = tmp_path / "bundle" / "language_model.data"
    import onnx

    graph = onnx.load(tmp_path / "bundle" / "language_model.onnx", load_external_data=False).graph
    one, other = (
        next(
            t
            for t in graph.initializer
            if t.name == f"model.language_model.layers.1.self_attn.{p}.weight.T{suffix}"
        )
        for p in ("q_proj", "o_proj")
    )
    places = [{entry.key: entry.value for entry in t.external_data} for t in (one, other)]
    (a, size), (b, _) = ((int(p["offset"]), int(p["length"])) for p in places)
    content = bytearray(data.read_bytes())
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]
    data.write_bytes(content)
    assert "weights: changed" in failures(bundle.plan, bundle.folder)
