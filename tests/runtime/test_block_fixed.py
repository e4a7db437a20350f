"""Caches of fixed size: the same answers as with a growing one, up to the last row, and then a clear end."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from exporting import export, plan_of
from one_slot import OneSlot
from raising import refused

from divprune_edge.models import steps
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.processing.prompt import Turn
from divprune_edge.runtime.backends import Backend, CacheRows, open_backend
from divprune_edge.runtime.backends.onnxruntime import _require_kernels
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.pipeline import Pipeline

CAPACITY = 192
DIALECTS = pytest.mark.parametrize("dialect", ["static", "decomposed"])


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the demo checkpoint in a dialect and precision, with a cache of 192 rows."""

    @cache
    def get(dialect: str, precision: str = "fp32") -> Path:
        plan = plan_of(CHECKPOINT, 58, dialect=dialect, precision=precision, capacity=CAPACITY)
        return export(plan, tmp_path_factory.mktemp("bundles") / dialect).folder

    return get


@pytest.fixture(scope="module")
def portable(demo_bundle: Path) -> Backend:
    return open_backend(Bundle.open(demo_bundle), "cpu", threads=1)


def begin(backend: Backend, bundle: Bundle, rows: CacheRows | None = None) -> Any:
    shape = (1, 58, bundle.manifest.vision_encoder.width)
    visual = np.random.default_rng(2).standard_normal(shape).astype(bundle.manifest.token_dtype)
    one = OneSlot(backend, backend.to_device(visual), rows)
    one.backend, one.bundle = backend, bundle  # type: ignore[attr-defined]
    return one


@pytest.fixture
def pair(
    dialect: str, bundle_of: Callable[..., Path], portable: Backend, demo_bundle: Path
) -> tuple[Any, Any, list[int]]:
    """A sequence with a fixed cache, one with a growing cache, and the ids of a prompt of 62."""
    bundle, other = Bundle.open(bundle_of(dialect)), Bundle.open(demo_bundle)
    rows = bundle.manifest.language_model.embedding_rows
    sessions = (begin(open_backend(bundle, "cpu", threads=1), bundle), begin(portable, other))
    return (*sessions, [1, 7, *range(rows, rows + 58), 9, 8])


def agree(found: Any, wanted: Any) -> bool:
    return bool(np.allclose(found, wanted, atol=1e-4)) and int(found.argmax()) == int(wanted.argmax())


@DIALECTS
def test_greedy_tokens_until_the_cache_is_full(pair: tuple[Any, Any, list[int]]) -> None:
    """130 decode steps, the last of which fills the last row."""
    a, b, ids = pair
    found, wanted = a.extend(ids), b.extend(ids)
    while a.length < CAPACITY:
        assert agree(found, wanted), a.length
        token = int(wanted.argmax())
        found, wanted = a.extend([token]), b.extend([token])
    assert agree(found, wanted)
    assert a.length == b.length == CAPACITY
    with refused("sequence-too-long", CAPACITY + 1, CAPACITY, "--capacity"):
        a.extend([5])
    assert a.length == CAPACITY
    a.truncate(CAPACITY - 1)
    b.truncate(CAPACITY - 1)
    assert agree(a.extend([5]), b.extend([5]))


@DIALECTS
def test_a_prompt_that_fills_the_cache_at_once(pair: tuple[Any, Any, list[int]]) -> None:
    a, b, ids = pair
    ids += [5] * (CAPACITY - len(ids))
    assert agree(a.extend(ids), b.extend(ids))
    assert a.length == CAPACITY


@DIALECTS
@pytest.mark.parametrize("chunk", [1, 17, 61])
def test_chunked_prefill_and_truncation(pair: tuple[Any, Any, list[int]], chunk: int) -> None:
    a, b, ids = pair
    assert agree(a.extend(ids, chunk), b.extend(ids))
    assert a.length == b.length == len(ids)
    for session in pair[:2]:
        session.extend([9, 9, 9])
        session.truncate(30)
        session.truncate(40)
    assert a.length == 30
    assert agree(a.extend([3, 4, 5]), b.extend([3, 4, 5]))


@DIALECTS
def test_a_sequence_begins_with_the_rows_of_another(pair: tuple[Any, Any, list[int]]) -> None:
    a, b, ids = pair
    b.extend(ids[:40])
    a.extend(ids[:60])
    taken = a.rows(40)
    assert all(np.allclose(x, y, atol=1e-5) for x, y in zip(taken, b.rows(40), strict=True))
    fresh = begin(a.backend, a.bundle, taken)
    assert fresh.length == 40
    assert agree(fresh.extend(ids[40:]), b.extend(ids[40:]))
    assert np.array_equal(a.rows(40)[0], taken[0]), "the other sequence's rows were written"


@DIALECTS
def test_a_step_writes_its_own_rows_in_the_memory_that_was_bound(pair: tuple[Any, Any, list[int]]) -> None:
    session, _, ids = pair
    held = session.session.block
    block = held.numpy()
    block[:] = 7.5
    for count in (20, 3, 1, 1):
        before, length = block.copy(), session.length
        session.extend(ids[length : length + count])
        changed = (block != before).any(axis=(0, 1, 2, 4))
        assert np.flatnonzero(changed).tolist() == list(range(length, length + count))
    assert session.session.block is held


@pytest.mark.parametrize(
    ("dialect", "name", "wrong"),
    [
        ("static", "attention_mask", lambda mask: np.roll(mask, 1, axis=-1)),
        ("static", "write_indices", lambda rows: rows + 1),
        ("static", "position_ids", lambda positions: positions // 2),
        ("decomposed", "cache_mask", lambda mask: np.roll(mask, 1, axis=-1)),
        ("decomposed", "new_mask", lambda mask: np.tril(mask, -1) | np.eye(1, mask.shape[-1], dtype=bool)),
        ("decomposed", "position_ids", lambda positions: positions // 2),
    ],
)
def test_a_wrong_step_is_seen(
    pair: tuple[Any, Any, list[int]], dialect: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above would notice a mask, row or position that is off by one."""
    a, b, ids = pair
    right = steps.STEPS[dialect]

    def step(*given: Any) -> Any:
        inputs = right(*given)
        return inputs | {name: np.ascontiguousarray(wrong(inputs[name]))}

    monkeypatch.setitem(steps.STEPS, dialect, step)
    assert not (
        np.allclose(a.extend(ids), b.extend(ids), atol=1e-4)
        and np.allclose(a.extend([5]), b.extend([5]), atol=1e-4)
    )


@DIALECTS
def test_an_answer_ends_where_the_cache_does(
    dialect: str, bundle_of: Callable[..., Path], demo_bundle: Path, image: Path
) -> None:
    options = {"max_tokens": 1000, "ignore_eos": True}
    found = Pipeline(bundle_of(dialect), threads=1).ask(image, "What is there?", **options)
    assert found.finish_reason == "context"
    assert found.prompt_tokens + len(found.token_ids) == CAPACITY
    options["max_tokens"] = len(found.token_ids)
    wanted = Pipeline(demo_bundle, threads=1).ask(image, "What is there?", **options)
    assert wanted.finish_reason == "length"
    assert found.token_ids == wanted.token_ids


@DIALECTS
def test_a_conversation(dialect: str, bundle_of: Callable[..., Path], demo_bundle: Path, image: Path) -> None:
    def talk(bundle: Path) -> list[tuple[int, ...]]:
        pipeline = Pipeline(bundle, threads=1)
        said = []
        for _ in range(2):  # the second time, what comes before the image is there already
            chat = pipeline.chat(image)
            said += [
                chat.ask(question, max_tokens=12, ignore_eos=True, prefill_chunk=30).token_ids
                for question in ("What is there?", "How many red circles are there?")
            ]
        return said

    found = talk(bundle_of(dialect))
    assert found == talk(demo_bundle)
    assert found[:2] == found[2:]


def test_a_prompt_that_is_too_long_is_one_sentence(bundle_of: Callable[..., Path], image: Path) -> None:
    pipeline = Pipeline(bundle_of("static"), "none")
    with refused("prompt-too-long", 576, 192, "--capacity"):
        pipeline.ask(image, "What is there?")


@DIALECTS
@pytest.mark.parametrize("precision", ["fp16", "int4", "vision=fp16,language=int4"])
def test_narrow_types_answer(dialect: str, precision: str, bundle_of: Callable[..., Path]) -> None:
    pipeline = Pipeline(bundle_of(dialect, precision), threads=1)
    assert pipeline.bundle.manifest.token_dtype == "float16"
    assert pipeline.bundle.manifest.language_model.cache_dtype == "float16"
    image = ROOT / "models" / "demo" / "picture.png"
    assert pipeline.ask(image, "What colour is the circle?").answer == "purple"


@DIALECTS
def test_half_precision_stays_close(
    dialect: str, bundle_of: Callable[..., Path], portable: Backend, demo_bundle: Path
) -> None:
    """Prefill and 64 steps along the tokens of float32: within 3 % of the largest logit."""
    half, single = Bundle.open(bundle_of(dialect, "fp16")), Bundle.open(demo_bundle)
    a, b = begin(open_backend(half, "cpu", threads=1), half), begin(portable, single)
    rows = single.manifest.language_model.embedding_rows
    ids = [1, 7, *range(rows, rows + 58), 9, 8]
    for _ in range(65):
        found, wanted = a.extend(ids), b.extend(ids)
        assert np.abs(found - wanted).max() <= 3e-2 * np.abs(wanted).max()
        ids = [int(wanted.argmax())]


@DIALECTS
def test_cuda_is_refused(dialect: str, bundle_of: Callable[..., Path]) -> None:
    manifest = Bundle.open(bundle_of(dialect)).manifest
    _require_kernels(manifest, "cpu")
    with refused("dialect-with-backend", dialect, "portable"):
        _require_kernels(manifest, "cuda")


def test_the_prompt_of_the_tests_has_a_prefix(bundle_of: Callable[..., Path]) -> None:
    """Else the conversation above would not have reused anything."""
    encoder = Bundle.open(bundle_of("static")).prompt_encoder()
    prompt = encoder.encode([Turn("user", "What is there?", images=1)], [1])
    assert prompt.before_image
