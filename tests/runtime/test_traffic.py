"""What passes between the host and the memory that ONNX Runtime computes in: ids and logits, nothing of a cache.

Bytes are counted at the one door (:mod:`divprune_edge.runtime.backends.memory`), which is the same on CUDA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import export, plan_of
from images_made import noise_pixels

from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.runtime import backends
from divprune_edge.runtime.backends.block import MORE_ROWS
from divprune_edge.runtime.backends.memory import DeviceMemory, TensorSpan, Traffic
from divprune_edge.runtime.pipeline import Pipeline

QUESTION, LATER = "what color is the circle?", "is there a square above the red circle?"
DEVICE_CACHES = pytest.mark.parametrize("dialect", ["portable", "onnxruntime"])


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pipeline]:
    @cache
    def get(dialect: str, greedy: bool = False) -> Pipeline:
        plan = plan_of(CHECKPOINT, 58, dialect=dialect, greedy=greedy)
        folder = export(plan, tmp_path_factory.mktemp("bundles") / dialect).folder
        return Pipeline(folder, threads=1)

    return get


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return noise_pixels(90, 90)


@contextmanager
def counted(pipeline: Pipeline) -> Iterator[Traffic]:
    """Give what passes inside the block."""
    now: Traffic = pipeline.backend.memory.traffic  # type: ignore[attr-defined]
    before, found = (now.to_device, now.to_host), Traffic()
    yield found
    found.to_device, found.to_host = now.to_device - before[0], now.to_host - before[1]


def row_bytes(pipeline: Pipeline) -> int:
    """Bytes of a row of all layers' caches."""
    info = pipeline.bundle.manifest.language_model
    return 2 * info.layers * info.kv_heads * info.head_dim * np.dtype(info.cache_dtype).itemsize


def begin(pipeline: Pipeline, slots: int = 1) -> tuple[Any, Any, list[int]]:
    """Return a session, visual tokens on the device, and the ids of a prompt."""
    manifest = pipeline.bundle.manifest
    shape = (1, 58, manifest.vision_encoder.width)
    visual = np.random.default_rng(1).standard_normal(shape).astype(manifest.token_dtype)
    rows = manifest.language_model.embedding_rows
    return (
        pipeline.backend.session(slots),
        pipeline.backend.to_device(visual),
        [1, *range(rows, rows + 58), 9],
    )


def fed(pipeline: Pipeline, ids: int, rows: int, sequences: int = 1) -> int:
    """Bytes of a step's inputs: ids, logits_index, and positions and mask, or lengths."""
    if pipeline.bundle.manifest.language_model.dialect == "portable":
        return sequences * (16 * ids + 8 + rows)
    return sequences * (8 * ids + 8 + 4) + 4


@DEVICE_CACHES
@pytest.mark.parametrize("greedy", [False, True])
def test_a_decode_step(pipeline_of: Callable[..., Pipeline], dialect: str, greedy: bool) -> None:
    pipeline = pipeline_of(dialect, greedy)
    session, visual, ids = begin(pipeline)
    slot = session.add(visual)
    session.extend(slot, ids)
    for step in range(4):
        with counted(pipeline) as traffic:
            found = session.step({slot: 5})[slot]
        assert traffic.to_device == fed(pipeline, 1, len(ids) + step + 1)
        logits = 4 * pipeline.bundle.manifest.language_model.vocabulary
        assert traffic.to_host == (8 if greedy else logits)
        with counted(pipeline) as traffic:
            best = int(found.logits.argmax())
            assert found.best in ((best,) if greedy else (None,))
            assert found.logits.size == logits // 4
        assert traffic.to_host == (logits if greedy else 0)


@DEVICE_CACHES
def test_a_prefill_behind_shared_rows(pipeline_of: Callable[..., Pipeline], dialect: str) -> None:
    """The rows go from cache to cache: what the host hands over is where they are, eight bytes each at most."""
    pipeline = pipeline_of(dialect)
    session, visual, ids = begin(pipeline)
    wanted = session.extend(session.add(visual), ids).logits.copy()
    shared = 40
    with counted(pipeline) as kept:
        rows = session.rows(0, shared)
    other, *_ = begin(pipeline)
    with counted(pipeline) as begun:
        slot = other.add(visual, rows)
    tensors = 2 * pipeline.bundle.manifest.language_model.layers
    for traffic in (kept, begun):
        assert traffic.to_host == 0
        assert traffic.to_device <= tensors * (8 * shared + 48) < shared * row_bytes(pipeline)
    with counted(pipeline) as traffic:
        found = other.extend(slot, ids[shared:])
    nothing = 4 * pipeline.bundle.manifest.vision_encoder.width  # what decoded ids refer to, once
    left = len(ids) - shared
    assert traffic.to_device in (fed(pipeline, left, len(ids)), fed(pipeline, left, len(ids)) + nothing)
    assert traffic.to_host == 4 * pipeline.bundle.manifest.language_model.vocabulary
    assert np.allclose(found.logits, wanted, atol=1e-4)


@DEVICE_CACHES
def test_a_cache_that_grows(pipeline_of: Callable[..., Pipeline], dialect: str) -> None:
    pipeline = pipeline_of(dialect)
    info = pipeline.bundle.manifest.language_model
    session, visual, ids = begin(pipeline)
    slot, whole = session.add(visual), [*ids, *([5] * (MORE_ROWS - len(ids)))]
    session.extend(slot, whole)
    before = getattr(session, "capacity", None)
    with counted(pipeline) as traffic:
        grown = session.step({slot: 7})[slot].logits.copy()
    if before is not None:
        assert before == MORE_ROWS < session.capacity
    assert traffic.to_host == 4 * info.vocabulary
    assert traffic.to_device < 16 * MORE_ROWS + 4 * info.visual.shape[2]
    assert traffic.to_device < MORE_ROWS * row_bytes(pipeline) / 50
    at_once, *_ = begin(pipeline)
    assert np.allclose(at_once.extend(at_once.add(visual), [*whole, 7]).logits, grown, atol=1e-4)


@DEVICE_CACHES
def test_a_batch(pipeline_of: Callable[..., Pipeline], dialect: str) -> None:
    """Sequences of different lengths are put side by side, one leaves, another begins."""
    pipeline = pipeline_of(dialect)
    info = pipeline.bundle.manifest.language_model
    session, visual, ids = begin(pipeline, 3)
    slots = [session.add(visual) for _ in range(3)]
    for slot in slots:
        session.extend(slot, ids[: len(ids) - slot])
    row, tensors = row_bytes(pipeline), 2 * info.layers
    with counted(pipeline) as traffic:
        session.step(dict.fromkeys(slots, 5))
    assert traffic.to_host == 3 * 4 * info.vocabulary
    where = 3 * tensors * (8 * len(ids) + 48)  # of rows that are put side by side
    assert traffic.to_device <= where + fed(pipeline, 1, len(ids) + 1, 3) + 3 * 4 * info.visual.shape[2]
    assert where < 3 * len(ids) * row
    for _ in range(2):
        with counted(pipeline) as traffic:
            session.step(dict.fromkeys(slots, 5))
        assert traffic.to_device <= fed(pipeline, 1, len(ids) + 3, 3)
    session.remove(slots[0])
    session.truncate(slots[1], 30)
    found = session.extend(slots[1], ids[30:]).logits.copy()
    alone, *_ = begin(pipeline)
    assert np.allclose(found, alone.extend(alone.add(visual), ids).logits, atol=1e-4)


@DEVICE_CACHES
def test_conversations(pipeline_of: Callable[..., Pipeline], pixels: np.ndarray, dialect: str) -> None:
    """An image and its tokens are handed over once; a second question costs its own ids."""
    pipeline = pipeline_of(dialect)
    manifest = pipeline.bundle.manifest
    pipeline.ask(pixels, QUESTION, max_tokens=1)
    chat = pipeline.chat(pixels)
    with counted(pipeline) as first:
        chat.ask(QUESTION, max_tokens=4, ignore_eos=True)
    height, width = manifest.encoder_input[1]
    image = 3 * height * width
    cache = row_bytes(pipeline) * 80
    assert image < first.to_device < image + cache / 4
    with counted(pipeline) as second:
        chat.ask(LATER, max_tokens=4, ignore_eos=True)
    assert second.to_device < cache / 20
    assert second.to_host == 4 * 4 * manifest.language_model.vocabulary
    with counted(pipeline) as both:
        pipeline.ask_batch([(pixels, QUESTION), (pixels, LATER)], max_tokens=4, ignore_eos=True)
    assert both.to_device < image + cache / 2
    # Logits, and the indices of what was kept: no visual token comes to the host.
    assert both.to_host == 4 * 8 * manifest.language_model.vocabulary + 8 * 58


def test_one_door() -> None:
    """No other module of the backend makes a tensor of an array, or an array of a tensor."""
    door = re.compile(
        r"ortvalue_from_numpy|\.numpy\(\)|update_inplace|bind_cpu_input|copy_outputs_to_cpu|\"cpu\"\)"
    )
    folder = Path(backends.__file__).parent
    doors = {path.name for path in folder.glob("*.py") if door.search(path.read_text(encoding="utf-8"))}
    assert doors == {"binding.py", "memory.py"}


class Small(DeviceMemory):
    """Clears as on a device, and copies a little at a time."""

    def zeros(self, shape: Any, dtype: str) -> Any:
        value = self.empty(shape, dtype)
        np.copyto(self.on_host(value), 7)
        size = int(np.prod(shape))
        self.clear(TensorSpan(value, dtype, (1, 1, size)))
        return value


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("once", [1, 5, 30, 1 << 30])
def test_copies_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch, dtype: str, once: int) -> None:
    """In as many pieces as it takes, and nothing beside the place is written."""
    monkeypatch.setattr("divprune_edge.runtime.backends.memory._ONCE", once)
    memory, random = DeviceMemory("cpu"), np.random.default_rng(3)
    source = random.standard_normal((5, 4, 2)).astype(dtype)
    held, columns = memory.upload(source), [3, 0, 0]
    room = memory.upload(np.full((7, 6, 2), 9, dtype))
    memory.copy(
        TensorSpan(held, dtype, source.shape).part(1, 3),
        columns,
        TensorSpan(room, dtype, (7, 6, 2)).part(2, 3),
        before=2,
    )
    wanted = np.full((7, 6, 2), 9, dtype)
    wanted[2:5] = 0
    wanted[2:5, 2:5] = source[1:4][:, columns]
    assert np.array_equal(memory.on_host(room), wanted)
    memory.copy(TensorSpan(held, dtype, (5, 4, 2)), [], TensorSpan(room, dtype, (7, 6, 2)).part(0, 5))
    assert not memory.on_host(room)[:5].any()
    assert np.array_equal(memory.on_host(memory.take(held, [2, 1], axis=0)), source[[2, 1]])
    joined = memory.on_host(memory.join([held, room], (2, 31, 2)))
    assert np.array_equal(joined[0, :20], source.reshape(20, 2))
    # In 16 bits these begin and end between words.
    odd = source.reshape(-1)[:39].reshape(3, 13)
    value = memory.upload(odd)
    assert np.array_equal(memory.on_host(memory.take(value, [1], axis=0)), odd[[1]])
    joined = memory.on_host(memory.join([value, held], (79,)))
    assert np.array_equal(joined, np.concatenate((odd.reshape(-1), source.reshape(-1))))
    assert not Small("cpu").on_host(Small("cpu").zeros((3, 5, 2), dtype)).any()
