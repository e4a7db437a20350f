"""The cache that is updated in place: same logits as a growing one, and a capacity that grows and ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import run_module
from one_slot import OneSlot
from raising import failed, refused

from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.backends import Backend, block, open_backend
from divprune_edge.runtime.backends.memory import run_bound
from divprune_edge.runtime.backends.onnxruntime import _require_kernels
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.pipeline import Pipeline


@pytest.fixture(scope="module")
def fused_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint in dialect ``onnxruntime``."""
    folder = tmp_path_factory.mktemp("bundles") / "fused"
    arguments = ("--prune", "0.9", "--no-verify", "--dialect", "onnxruntime", "--output", str(folder))
    result = run_module("export", "llava", *arguments)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def fused(fused_bundle: Path) -> Backend:
    return open_backend(Bundle.open(fused_bundle), "cpu", threads=2)


@pytest.fixture(scope="module")
def portable(demo_bundle: Path) -> Backend:
    return open_backend(Bundle.open(demo_bundle), "cpu", threads=2)


def visual(bundle: Bundle) -> np.ndarray:
    shape = (1, 58, bundle.manifest.vision_encoder.width)
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def sequences(fused: Backend, portable: Backend, bundle: Path) -> tuple[list, list[int]]:
    opened = Bundle.open(bundle)
    rows = opened.manifest.language_model.embedding_rows
    tokens = visual(opened)
    return [OneSlot(b, b.to_device(tokens)) for b in (fused, portable)], [1, 7, *range(rows, rows + 58), 9, 8]


def test_logits_equal_those_of_a_growing_cache(fused: Backend, portable: Backend, fused_bundle: Path) -> None:
    (a, b), ids = sequences(fused, portable, fused_bundle)
    assert np.allclose(a.extend(ids, chunk=17), b.extend(ids), atol=1e-4)
    for token in (5, 9, 11, 30):
        assert np.allclose(a.extend([token]), b.extend([token]), atol=1e-4)
        assert a.length == b.length
    for session in (a, b):
        session.truncate(20)
    assert np.allclose(a.extend([3, 4, 5]), b.extend([3, 4, 5]), atol=1e-4)


def test_the_cache_grows_and_keeps_what_it_holds(
    fused: Backend, portable: Backend, fused_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "MORE_ROWS", 8)
    (a, b), ids = sequences(fused, portable, fused_bundle)
    assert a.session.capacity == 8
    for i, token in enumerate(ids):
        assert np.allclose(a.extend([token]), b.extend([token]), atol=1e-4), i
    assert a.session.capacity == 68  # 8, 17, 34


def test_a_full_cache_ends_in_one_sentence(fused: Backend, portable: Backend, fused_bundle: Path) -> None:
    (a, _), _ = sequences(fused, portable, fused_bundle)
    context = Bundle.open(fused_bundle).manifest.language_model.context
    a.extend([7] * (context - 1))
    a.extend([7])
    assert a.session.capacity == a.length == context
    with refused("sequence-too-long", context + 1, context):
        a.extend([7])


def test_answers_equal_those_of_the_other_dialect(fused_bundle: Path, demo_bundle: Path, image: Path) -> None:
    options = {"max_tokens": 24, "ignore_eos": True}
    answers = [
        Pipeline(bundle).ask(image, "What is there?", **options) for bundle in (fused_bundle, demo_bundle)
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_a_kernel_that_does_not_exist_is_refused(fused_bundle: Path) -> None:
    manifest = Bundle.open(fused_bundle).manifest
    _require_kernels(manifest, "cpu")
    with refused("onnxruntime-without-kernel", "--precision fp16", "--dialect portable"):
        _require_kernels(manifest, "cuda")
    language = manifest.language_model.model_copy(update={"cache_dtype": "float16"})
    half = manifest.model_copy(update={"language_model": language})
    _require_kernels(half, "cuda")
    vision = manifest.vision_encoder.model_copy(update={"precision": "int8"})
    with refused("onnxruntime-without-kernel", "int8"):
        _require_kernels(half.model_copy(update={"vision_encoder": vision}), "cuda")


@pytest.mark.parametrize("dialect", ["fused", "portable"])
def test_what_comes_before_the_image_is_computed_once(
    dialect: str, fused_bundle: Path, demo_bundle: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(fused_bundle if dialect == "fused" else demo_bundle)
    fed: list[int] = []
    backend = pipeline.backend
    session = type(backend).session

    def watched(self: Backend, *arguments: object) -> object:
        made = session(self, *arguments)  # type: ignore[arg-type]
        extend = made.extend

        def counted(slot: int, ids: list[int], *rest: object) -> np.ndarray:
            fed.append(len(ids))
            return extend(slot, ids, *rest)

        made.extend = counted  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(type(backend), "session", watched)
    first, second = (pipeline.ask(image, "What is there?", max_tokens=5) for _ in range(2))
    prompt = pipeline.prompts.encode([Turn("user", "What is there?", images=1)], [58])
    assert len(prompt.before_image) > 0
    assert fed == [first.prompt_tokens, first.prompt_tokens - len(prompt.before_image)]
    assert first.token_ids == second.token_ids
    other = pipeline.with_selector("none")
    fed.clear()
    other.ask(image, "What is there?", max_tokens=5)
    assert fed[0] == len(prompt) - 58 + 576 - len(prompt.before_image)


def test_a_failure_of_the_engine_is_one_sentence() -> None:
    class Full:
        def run_with_iobinding(self, binding: object, options: object) -> None:
            raise RuntimeError("Failed to allocate\nmemory for requested buffer of size 99.")

    with failed("onnxruntime-failed", "Failed to allocate memory", 99):
        run_bound(Full(), object())  # type: ignore[arg-type]
