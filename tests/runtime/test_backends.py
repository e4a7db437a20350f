"""The ONNX Runtime backend: chunks, truncation, selection, and no silent fallback."""

from __future__ import annotations

import re
import types
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from exporting import export, plan_of
from one_slot import OneSlot
from plugins_emulation import write_library
from raising import refused

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.selectors import SELECTORS, find_selector
from divprune_edge.plugins.loader import OPERATORS_VARIABLE, SERVED
from divprune_edge.plugins.record import OPERATORS
from divprune_edge.runtime.backends import Backend, Encoded, open_backend
from divprune_edge.runtime.backends import onnxruntime as module
from divprune_edge.runtime.bundle import Bundle

TEXT = [1, 7, 8, 30]


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle)


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Backend:
    return open_backend(bundle, "cpu", threads=2)


@pytest.fixture(scope="module")
def pixels(bundle: Bundle) -> np.ndarray:
    vision = bundle.manifest.vision_encoder
    shape = (1, vision.image_height, vision.image_width, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def prompt(bundle: Bundle, visual: int) -> list[int]:
    rows = bundle.manifest.language_model.embedding_rows
    return [*TEXT, *range(rows, rows + visual), *TEXT[1:]]


def test_selection_equals_the_reference(backend: Backend, bundle: Bundle, pixels: np.ndarray) -> None:
    encoded = backend.encode({"pixels": pixels})
    selector = bundle.manifest.selectors[0]
    valid = np.ones((1, selector.candidates), np.bool_)
    valid[0, 100:200] = False
    kept, indices = backend.select(encoded, selector, valid)
    rows = backend.to_host(encoded.tokens)[0]
    expected = find_selector(selector.name).reference(rows, valid[0], selector.keep)
    # The distance matrix is computed by other code: a near-tie may fall either way.
    assert len(set(indices[0]) & set(expected)) >= selector.keep - 2
    assert not ((indices >= 100) & (indices < 200)).any()
    assert np.array_equal(kept.numpy()[0], rows[indices[0]])
    assert np.all(np.diff(indices[0]) > 0)


def test_values_outlive_what_they_came_from(backend: Backend) -> None:
    """An array that is handed on without a copy may be all that is left of a tensor: none lies in a caller's memory."""
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    tensor = backend.to_device(array)
    joined = backend.join(
        [backend.take(backend.part(Encoded({"visual_tokens": tensor}), 1).tokens, np.arange(2))], (2, 1, 4)
    )
    for one, wanted in ((tensor, array), (joined, array[1, :2, None])):
        assert np.array_equal(backend.to_host(one), wanted)
        assert not np.shares_memory(backend.to_host(one), array)


def test_operators_that_are_none(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is there is used, or what is wrong with it is said; never is it passed over."""
    write_library(tmp_path, OPERATORS)
    monkeypatch.setenv(OPERATORS_VARIABLE, str(tmp_path))
    with refused("operators-not-accepted", tmp_path / OPERATORS, ort.__version__, "DIVPRUNE_OPERATORS=off"):
        open_backend(bundle).load(bundle.manifest.selectors[0])
    (tmp_path / OPERATORS).write_bytes(b"damaged")
    with refused("plugin-changed", tmp_path / OPERATORS):
        open_backend(bundle).load(bundle.manifest.selectors[0])
    open_backend(bundle).load(None)
    monkeypatch.setenv(OPERATORS_VARIABLE, "off")
    open_backend(bundle).load(bundle.manifest.selectors[0])


def test_operators_of_the_cpu_leave_the_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the node has a kernel for the CPU alone, ONNX Runtime would copy the tokens there and back."""
    registered: list[str] = []
    options = types.SimpleNamespace(register_custom_ops_library=registered.append)
    monkeypatch.setenv(OPERATORS_VARIABLE, str(write_library(tmp_path, OPERATORS, cuda=None)))
    module._add_operators(options, "cuda")
    assert registered == []
    assert "--onnxruntime-include" in caplog.text
    module._add_operators(options, "cpu")
    assert registered == [str(tmp_path / OPERATORS)]
    write_library(tmp_path, OPERATORS, cuda="13.0")
    module._add_operators(options, "cuda")
    assert len(registered) == 2
    caplog.clear()
    monkeypatch.setenv(OPERATORS_VARIABLE, "off")
    module._add_operators(options, "cuda")
    assert (len(registered), caplog.text) == (2, "")


def test_selectors_that_operators_serve() -> None:
    """By name, which a bundle has; what the library takes are nodes."""
    nodes = {"MaxMinDiversity", "MinSumSimilarity"}
    assert sorted(SERVED) == sorted(name for name, one in SELECTORS.items() if one.op_type in nodes)


def test_a_selector_without_an_operator_asks_for_no_library(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(CHECKPOINT, 58, selector="uniform")
    bundle = Bundle.open(export(plan, tmp_path_factory.mktemp("uniform") / "bundle").folder)
    write_library(tmp_path, OPERATORS)
    monkeypatch.setenv(OPERATORS_VARIABLE, str(tmp_path))
    open_backend(bundle).load(bundle.manifest.selectors[0])


@pytest.mark.parametrize("chunk", [1, 5, 7, 64])
def test_chunked_prefill_is_the_same(
    backend: Backend, bundle: Bundle, pixels: np.ndarray, chunk: int
) -> None:
    visual = backend.encode({"pixels": pixels}).tokens
    ids = prompt(bundle, 40)
    whole, pieces = OneSlot(backend, visual), OneSlot(backend, visual)
    expected = whole.extend(ids).copy()
    assert np.allclose(pieces.extend(ids, chunk), expected, atol=1e-4)
    assert pieces.length == whole.length == len(ids)
    assert np.allclose(pieces.extend([5]), whole.extend([5]), atol=1e-4)


def test_truncated_cache_goes_on_as_if_nothing_had_followed(
    backend: Backend, bundle: Bundle, pixels: np.ndarray
) -> None:
    visual = backend.encode({"pixels": pixels}).tokens
    ids = prompt(bundle, 20)
    session, fresh = OneSlot(backend, visual), OneSlot(backend, visual)
    session.extend([*ids, 9, 9, 9])
    session.truncate(len(ids) - 2)
    assert session.length == len(ids) - 2
    session.truncate(len(ids))
    assert session.length == len(ids) - 2
    assert np.allclose(session.extend(ids[-2:]), fresh.extend(ids), atol=1e-4)


def test_sequences_do_not_share_a_cache(backend: Backend, bundle: Bundle, pixels: np.ndarray) -> None:
    visual = backend.encode({"pixels": pixels}).tokens
    first, second = OneSlot(backend, visual), OneSlot(backend, visual)
    expected = first.extend(TEXT).copy()
    first.extend([9, 9])
    assert np.array_equal(second.extend(TEXT), expected)


def test_unknown_backend_and_threads(bundle: Bundle) -> None:
    with refused("backend-unknown", "cdua", "'cuda'", "cpu, cuda, tensorrt or tensorrt-rtx"):
        open_backend(bundle, "cdua")
    with refused("threads-out-of-range", "0 threads"):
        open_backend(bundle, "cpu", threads=0)
    with refused("threads-out-of-range", 99999, 1024):
        open_backend(bundle, "cpu", threads=99999)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Failed to allocate memory for requested buffer of size 9", ": free memory, or export"),
        ("bad allocation", ": free memory"),
        ("CUDNN failure 1001", ": check the driver"),
        ("9 : NOT_IMPLEMENTED : Could not find an implementation for Attention(24)", ": it is older"),
        ("Unsupported model IR version: 14, max supported IR version: 13", ": it is older"),
        ("com.microsoft:GroupQueryAttention(-1) is not a registered function/op", ": it is older"),
        ("open file vision_encoder.data fail, errcode = 13 - Permission denied", ": make the file readable"),
        ("something else", ""),
    ],
)
def test_a_remedy_follows_from_what_onnxruntime_says(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with refused("onnxruntime-refuses-graph", "'vision_encoder.onnx'", "cpu") as caught:
        open_backend(bundle).load(None)
    _, _, end = str(caught.value).partition(f"({said})")
    assert end.startswith(remedy)
    assert (end == ".") == (not remedy)


def test_without_onnxruntime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("divprune_edge.runtime.backends.find_spec", lambda name: None)
    for backend, package in (("cpu", "onnxruntime"), ("cuda", "onnxruntime-gpu[cuda,cudnn]")):
        with refused("onnxruntime-missing", f"'{backend}'", f"'python -m pip install {package}'"):
            open_backend(bundle, backend)


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="CUDA is there")
def test_missing_provider_is_refused(bundle: Bundle) -> None:
    with refused("onnxruntime-without-provider", "CUDAExecutionProvider", "onnxruntime-gpu"):
        open_backend(bundle, "cuda")


class CpuOnly:
    """A session that was opened on the CPU."""

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_silent_fallback_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime-gpu without a working driver: lists CUDA, then opens the session on the CPU and says nothing.
    asked: list[object] = []

    def open_session(path: str, options: object, providers: list[object]) -> object:
        asked.extend(providers)
        return CpuOnly()

    monkeypatch.setattr(module.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(module.ort, "InferenceSession", open_session)
    with refused("onnxruntime-fell-back", "CUDAExecutionProvider", "CPUExecutionProvider"):
        open_backend(bundle, "cuda").load(None)
    assert ("CUDAExecutionProvider", {"use_tf32": "0"}) in asked


def test_only_the_language_model_keeps_its_threads_awake(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake: dict[str, bool] = {}

    def open_session(path: str, options: ort.SessionOptions, providers: list[object]) -> object:
        try:
            stops = options.get_session_config_entry("session.force_spinning_stop")
        except RuntimeError:  # not set
            stops = "0"
        awake[Path(path).name] = stops == "0"
        return CpuOnly()

    monkeypatch.setattr(module.ort, "InferenceSession", open_session)
    monkeypatch.setattr(module, "check_session", lambda *given: None)
    open_backend(bundle, "cpu").load(bundle.manifest.selectors[0])
    assert awake == {"vision_encoder.onnx": False, "divprune-58.onnx": False, "language_model.onnx": True}


def test_graph_that_cannot_be_loaded_is_one_sentence(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "vision_encoder.onnx").write_bytes(b"not a graph")
    (tmp_path / "language_model.onnx").write_bytes(b"not a graph")
    with refused("onnxruntime-refuses-graph", "cpu") as error:
        open_backend(Bundle(tmp_path, bundle.manifest)).load(None)
    assert re.search(r"'(vision_encoder|language_model)\.onnx'", str(error.value))
