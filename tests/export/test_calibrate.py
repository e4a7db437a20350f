"""Calibration: what layers read is recorded as it is, and rounding by it beats rounding to the nearest."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from exporting import Bundle, export, failures, plan_of
from images_made import noise_image
from raising import refused

from divprune_edge.export.calibrate import calibrated
from divprune_edge.export.gptq import _loss, quantise_for
from divprune_edge.export.quantise import INT4, dequantise, quantise
from divprune_edge.export.verify.weights import GraphFile


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        noise_image(40, 50, i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def rounded(
    quantisable: Callable[..., Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    plan = calibrated(plan_of(quantisable(), precision="int4"), photos)
    return export(plan, tmp_path_factory.mktemp("gptq") / "bundle")


def correlated(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((24, 64)).astype(np.float32)
    x = random.standard_normal((300, 8)) @ random.standard_normal((8, 64)) + 0.3 * random.standard_normal(
        (300, 64)
    )
    return weight, x.T @ x


def test_gptq_halves_the_error_of_the_output() -> None:
    weight, moments = correlated()
    better, worse = quantise_for(weight, 32, INT4, moments), quantise(weight, 32, INT4)
    assert _loss(weight, better, moments) < 0.5 * _loss(weight, worse, moments)
    values, scales = better
    assert values.dtype == np.int8 and values.min() >= -8 and values.max() <= 7
    assert scales.shape == (24, 2) and (scales > 0).all()


def test_it_needs_onnxruntime(
    quantisable: Callable[..., Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(quantisable(), precision="int4")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused("onnxruntime-missing", "--calibrate", "[cpu]"):
        calibrated(plan, photos)


def test_independent_inputs_leave_rounding_to_the_nearest() -> None:
    weight, _ = correlated()
    found = quantise_for(weight, 32, INT4, np.eye(64))
    wanted = quantise(weight, 32, INT4)
    # A peak of 7.5 steps may go either way; the error is the same.
    assert _loss(weight, found, np.eye(64)) == pytest.approx(_loss(weight, wanted, np.eye(64)), rel=1e-3)


def test_inputs_that_never_occur_do_no_harm() -> None:
    weight, moments = correlated()
    moments[5] = moments[:, 5] = 0
    assert np.isfinite(dequantise(*quantise_for(weight, 32, INT4, moments))).all()


def test_every_layer_of_the_decoder_is_seen(rounded: Bundle) -> None:
    moments = rounded.plan.moments
    assert len(moments) == 3 * 7
    for name, moment in moments.items():
        inner = rounded.plan.checkpoint.tensors[name].shape[1]
        assert moment.shape == (inner, inner)
        assert np.allclose(moment, moment.T) and np.trace(moment) > 0
    layer = "model.language_model.layers.1."
    assert moments[f"{layer}mlp.gate_proj.weight"] is moments[f"{layer}mlp.up_proj.weight"]
    assert moments[f"{layer}self_attn.q_proj.weight"] is not moments[f"{layer}self_attn.o_proj.weight"]


def test_a_calibrated_bundle_verifies_and_says_so(rounded: Bundle) -> None:
    assert rounded.manifest.calibrated
    assert failures(rounded.plan, rounded.folder) == set()


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_it_goes_with_a_language_model_for_tensorrt(
    dialect: str, quantisable: Callable[..., Path], photos: Path, tmp_path: Path, rounded: Bundle
) -> None:
    """What the layers read is seen in float32 whatever the dialect; the scales are float16."""
    plan = plan_of(quantisable(), precision="vision=fp16,language=int4", dialect=dialect)
    plan = calibrated(plan, photos)
    assert all(np.array_equal(plan.moments[name], moment) for name, moment in rounded.plan.moments.items())
    bundle = export(plan, tmp_path / "bundle")
    assert bundle.manifest.calibrated
    assert failures(bundle.plan, bundle.folder) == set()


def test_its_layers_are_closer_than_rounded_to_the_nearest(
    rounded: Bundle, quantised: Callable[..., Bundle]
) -> None:
    def losses(bundle: Bundle) -> list[float]:
        found = []
        for name, weight, suffix in GraphFile(bundle.folder / "language_model.onnx").dequantised():
            if suffix == ".int4":
                difference = weight - bundle.plan.checkpoint.read(name)
                moments = rounded.plan.moments[name]
                found.append(float(np.einsum("oi,ij,oj->", difference, moments, difference, optimize=True)))
        return found

    ratios = np.array(losses(rounded)) / np.array(losses(quantised("int4")))
    assert (ratios <= 1.001).all() and ratios.mean() < 0.8


@pytest.mark.parametrize(("selector", "keep"), [("fastervlm", 9), ("visionzip", 9), ("visionzip", 25)])
def test_selectors_that_need_signals_or_merge(
    selector: str, keep: int, quantisable: Callable[..., Path], photos: Path, rounded: Bundle
) -> None:
    plan = calibrated(plan_of(quantisable(), keep, precision="int4", selector=selector), photos)
    assert plan.moments.keys() == rounded.plan.moments.keys()


def test_too_little_room_for_the_graphs_in_float32(
    quantisable: Callable[..., Path], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are several times as large as the bundle, and lie where temporary files do."""
    plan = plan_of(quantisable(), precision="int4")
    written = 4 * sum(int(np.prod(tensor.shape)) for tensor in plan.checkpoint.tensors.values())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=written // 2))
    with refused("disk-too-full", "--calibrate", "TMPDIR"):
        calibrated(plan, photos)


def test_nothing_to_calibrate_is_refused(
    quantisable: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    with refused("calibration-needs-int4", "--calibrate", "int4", "int8"):
        calibrated(plan_of(quantisable(), precision="int8"), photos)
    plan = plan_of(quantisable(), precision="int4")
    with refused("calibration-images-missing"):
        calibrated(plan, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with refused("image-format-unknown", "broken.png", "TIFF"):
        calibrated(plan, tmp_path)
