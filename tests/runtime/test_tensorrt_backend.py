"""Backend ``tensorrt`` end to end over a FAKE device (``fake_device.py``), against ONNX Runtime on the portable graphs.

What is shown here is the backend's own work: what lies where, what is copied, what is captured. Nothing here ran on
TensorRT or on a GPU.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import same
from checkpoints import make_checkpoint
from conftest import run_module
from exporting import export, plan_of
from fake_device import FakeDevice, FakeEngines
from one_slot import OneSlot
from over_fake import over_fake
from plugins_emulation import EMULATED, compile_emulated
from raising import failed, refused

from divprune_edge.errors import DivpruneError
from divprune_edge.plugins import abi
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.backends.tensorrt_language import TensorRtSession
from divprune_edge.runtime.backends.tensorrt_slots import Slots
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.generate import Decoding
from divprune_edge.runtime.lab.evaluation import runner
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.vision import SeenImage, VisualTokens

DIALECTS = ("static", "decomposed")
ROWS = 77
QUESTIONS = ("What colour is the circle?", "How many squares are there?")


@pytest.fixture(scope="module", params=DIALECTS)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo checkpoint with room for an unpruned image."""
    folder = tmp_path_factory.mktemp("bundles") / request.param
    arguments = ("--dialect", request.param, "--capacity", "704", "--prune", "0.9", "--no-verify")
    result = run_module("export", "llava", *arguments, "--output", str(folder))
    assert result.returncode == 0, result.stderr
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A random checkpoint with odd sizes and grouped heads, in all three dialects; its cache is small."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = make_checkpoint(folder / "checkpoint", text={"num_key_value_heads": 2})
    bundles = {}
    for dialect in (*DIALECTS, "portable"):
        options: dict[str, Any] = {"capacity": ROWS} if dialect in DIALECTS else {}
        export(plan_of(checkpoint, keep=9, dialect=dialect, **options), folder / dialect)
        bundles[dialect] = Bundle.open(folder / dialect)
    return bundles


@pytest.mark.parametrize("selector", [None, "none"])
def test_answers_are_those_of_the_portable_graphs(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch, selector: str | None
) -> None:
    """Two questions in a row: the second uses the memory of the first, and allocates nothing."""
    ours, device = over_fake(demo, monkeypatch)
    ours, reference = ours.with_selector(selector), pipeline.with_selector(selector)
    allocated = device.counts["allocations"], device.counts["pinned"]
    for question in QUESTIONS:
        options = {"max_tokens": 20, "ignore_eos": True}
        same(ours.ask(image, question, **options), reference.ask(image, question, **options))
    first_question = 2 if selector is None else 1  # page-locked memory of the uploads and of the indices
    assert device.counts["allocations"] == allocated[0]
    assert device.counts["pinned"] <= allocated[1] + 1 + first_question
    assert ours.backend.name == "tensorrt"


def test_a_chat_reuses_the_cache(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, device = over_fake(demo, monkeypatch)
    chats = [p.chat(image) for p in (ours, pipeline)]
    for question in (*QUESTIONS, QUESTIONS[0]):
        a, b = (chat.ask(question, max_tokens=8) for chat in chats)
        same(a, b)
    assert device.counts["vision_encoder"] == 1


def test_two_chats_at_a_time_do_not_disturb_each_other(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own cache and visual tokens; the third takes over what the first leaves."""
    other = np.asarray(np.random.default_rng(3).integers(0, 256, (80, 80, 3)), np.uint8)
    ours, device = over_fake(demo, monkeypatch)
    chats = [[p.chat(image), p.chat(other)] for p in (ours, pipeline)]
    for question in QUESTIONS:
        for a, b in zip(*chats, strict=True):
            same(a.ask(question, max_tokens=6), b.ask(question, max_tokens=6))
    held = device.counts["allocations"]
    chats.clear()
    del a, b
    gc.collect()
    same(ours.ask(other, QUESTIONS[0]), pipeline.ask(other, QUESTIONS[0]))
    assert device.counts["allocations"] == held


def test_one_launch_per_decode_step_and_nothing_of_a_token_through_the_host(
    demo: Bundle, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, device = over_fake(demo, monkeypatch)
    manifest = demo.manifest
    ours.ask(image, QUESTIONS[0], max_tokens=3, ignore_eos=True)
    device.copies.clear()
    device.counts = Counter()
    tokens = 12
    ours.ask(image, QUESTIONS[1], max_tokens=tokens, ignore_eos=True)
    decoded = tokens - 1
    assert device.counts["launches"] == decoded
    assert device.counts["captures"] == 0
    assert device.counts["language_model"] == 1, "beside the graph there is the prefill alone"
    assert device.counts["vision_encoder"] == device.counts["divprune-58"] == 1
    assert device.counts["appends"] == (tokens if manifest.language_model.dialect == "decomposed" else 0)
    logits = 4 * manifest.language_model.vocabulary
    vision = manifest.vision_encoder
    pixels = vision.image_height * vision.image_width * 3
    model = ours.backend._language[0]  # type: ignore[attr-defined]
    step = model.places(1, 1)[1]
    downloads = [size for kind, size in device.copies if kind == "download"]
    uploads = [size for kind, size in device.copies if kind == "upload"]
    assert downloads == [58 * 8, *[logits] * tokens], "indices, and one row of logits per step"
    assert uploads[:2] == [pixels, vision.tokens]
    assert uploads[3:] == [step] * decoded
    assert len(uploads) == 3 + decoded
    token = vision.width * np.dtype(manifest.token_dtype).itemsize
    assert step < 58 * token


def test_an_engine_that_cannot_be_recorded_runs_without_a_graph(
    demo: Bundle,
    pipeline: Pipeline,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """TensorRT may choose kernels that no CUDA graph holds: slower, the same answers, and one warning."""

    class Refusing(FakeDevice):
        def capture(self, work: Callable[[], None]) -> Any:
            super().capture(work)
            raise DivpruneError("The GPU could not end a CUDA graph (invalidated).", code="gpu-failed")

    ours, device = over_fake(demo, monkeypatch, Refusing())
    for question in QUESTIONS:
        same(ours.ask(image, question, max_tokens=6), pipeline.ask(image, question, max_tokens=6))
    assert (device.counts["captures"], device.counts["launches"]) == (1, 0)
    (warning,) = caplog.messages
    assert warning.endswith("recorded as a CUDA graph (The GPU could not end a CUDA graph (invalidated)).")


def test_a_chunked_prefill(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks as asked for, and no piece longer than the engine takes; a piece of one id is a decode step."""
    ours, device = over_fake(demo, monkeypatch, selectors=["divprune-58"], max_prompt=20)
    for chunk in (None, 1, 7, 64):
        a, b = (p.ask(image, QUESTIONS[0], max_tokens=4, prefill_chunk=chunk) for p in (ours, pipeline))
        same(a, b)
    assert device.counts["language_model"] > 4


def test_what_comes_before_the_image_is_kept(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second conversation finds those rows in its cache; a second cache gets them through the host."""
    ours, device = over_fake(demo, monkeypatch)
    first = ours.chat(image)
    same(first.ask(QUESTIONS[0]), pipeline.ask(image, QUESTIONS[0]))
    assert len(ours._prefix) == 1
    device.copies.clear()
    other = ours.chat(image)
    same(other.ask(QUESTIONS[0]), pipeline.ask(image, QUESTIONS[0]))
    info, rows = demo.manifest.language_model, len(next(iter(ours._prefix)))
    one = info.kv_heads * rows * info.head_dim * 4
    assert device.copies.count(("upload", one)) == 2 * info.layers
    del first
    device.copies.clear()
    same(ours.ask(image, QUESTIONS[1]), pipeline.ask(image, QUESTIONS[1]))
    assert device.copies.count(("upload", one)) == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_sessions_of_a_small_cache(tiny: dict[str, Bundle], dialect: str) -> None:
    """Logits, step by step, with truncation, until the cache is full; sizes that fit no alignment."""
    bundle = tiny[dialect]
    info = bundle.manifest.language_model
    device = FakeDevice()
    ours = TensorRtBackend(bundle, device, FakeEngines(bundle))
    ours.load(bundle.selector())
    reference = open_backend(tiny["portable"], "cpu", threads=1)
    width = bundle.manifest.vision_encoder.width
    visual = np.random.default_rng(1).standard_normal((1, 9, width)).astype(np.float32)
    sessions = [OneSlot(b, b.to_device(visual)) for b in (ours, reference)]
    rows = info.embedding_rows

    def both(*ids: int) -> None:
        found, wanted = (session.extend(ids) for session in sessions)
        assert np.allclose(found, wanted, atol=2e-4)
        assert sessions[0].length == sessions[1].length

    both(1, 7, *range(rows, rows + 9), 8)
    for token in (5, 9, 11, rows + 3, 6):
        both(token)
    for session in sessions:
        session.truncate(4)
    both(3, 4, 5)
    both(6)
    kept = sessions[0].rows(5)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(kept, sessions[1].rows(5), strict=True))
    again = OneSlot(ours, ours.to_device(visual), kept)
    assert again.length == 5
    assert np.allclose(
        again.extend([9, 8]), _after(reference, visual, sessions[1].rows(5), [9, 8]), atol=2e-4
    )
    while sessions[0].length < info.positions:
        both(sessions[0].length % 40)
    before = dict(device.counts)
    with refused("sequence-too-long", info.positions + 1, info.positions):
        sessions[0].extend([7])
    assert dict(device.counts) == before
    sessions[0].truncate(10)
    sessions[1].truncate(10)
    both(7, 8)


def test_rows_are_copied_again_where_they_were_written_over(tiny: dict[str, Bundle]) -> None:
    """A cache that still begins with the rows is believed; one that another sequence used is not."""
    bundle = tiny["static"]
    device = FakeDevice()
    backend = TensorRtBackend(bundle, device, FakeEngines(bundle))
    backend.load(bundle.selector())
    visual = backend.to_device(np.zeros((1, 9, bundle.manifest.vision_encoder.width), np.float32))
    first = OneSlot(backend, visual)
    first.extend([1, 7, 8, 9])
    rows = first.rows(3)
    first.truncate(3)
    wanted = first.extend([4, 5]).copy()
    del first
    for before, copies in (([], 0), ([6, 6, 6, 6], 2 * bundle.manifest.language_model.layers)):
        if before:
            OneSlot(backend, visual).extend(before)
        device.copies.clear()
        session = OneSlot(backend, visual, rows)
        assert len(device.copies) == copies
        assert np.array_equal(session.extend([4, 5]), wanted)
        del session


def test_a_sequence_that_fails_to_begin_gives_its_memory_back(tiny: dict[str, Bundle]) -> None:
    """Whatever fails in it, the next sequence needs no second cache."""
    bundle = tiny["static"]
    device = FakeDevice()
    backend = TensorRtBackend(bundle, device, FakeEngines(bundle))

    def fail(*_: object) -> None:
        raise DivpruneError("The GPU could not.", code="gpu-failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slots, "warm_up", fail)
        with failed("gpu-failed", "could not"):
            backend.load(bundle.selector())
    backend.load(bundle.selector())
    visual = backend.to_device(np.zeros((1, 9, bundle.manifest.vision_encoder.width), np.float32))
    rows = OneSlot(backend, visual).rows(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorRtSession, "_write", fail)
        with failed("gpu-failed", "could not"):
            OneSlot(backend, visual, (*rows,))
    gc.collect()  # the failure's traceback holds on to its session
    OneSlot(backend, visual).extend([1, 7])
    assert backend._language[0]._made == 1


def test_a_sequence_keeps_its_visual_tokens(tiny: dict[str, Bundle]) -> None:
    """Whatever is encoded meanwhile, and whoever else held them."""
    bundle = tiny["decomposed"]
    backend = TensorRtBackend(bundle, FakeDevice(), FakeEngines(bundle))
    backend.load(bundle.selector())
    rows = bundle.manifest.language_model.embedding_rows
    random = np.random.default_rng(5).standard_normal((3, 1, 9, bundle.manifest.vision_encoder.width))
    prompt = [1, *range(rows, rows + 9), 8]
    session = OneSlot(backend, backend.to_device(random[0]))
    first = session.extend(prompt).copy()
    others = [backend.to_device(values) for values in random[1:]]
    second = OneSlot(backend, others.pop()).extend(prompt).copy()
    session.truncate(0)
    assert np.array_equal(session.extend(prompt), first)
    assert not np.allclose(first, second, atol=1e-3)


def _after(backend: Any, visual: Any, rows: Any, ids: list[int]) -> Any:
    return OneSlot(backend, backend.to_device(visual), rows).extend(ids)


def test_a_batch_is_decoded_together(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three questions in four slots: each answer is the one it has alone, and a step is one launch for all."""
    other = np.asarray(np.random.default_rng(3).integers(0, 256, (80, 80, 3)), np.uint8)
    pairs = [(image, QUESTIONS[0]), (other, QUESTIONS[1]), (image, QUESTIONS[1])]
    options = {"max_tokens": 9, "ignore_eos": True}
    ours, device = over_fake(demo, monkeypatch, slots=4)
    wanted = [pipeline.ask(*pair, **options) for pair in pairs]
    for _ in range(2):
        for found, alone in zip(ours.ask_batch(pairs, **options), wanted, strict=True):
            same(found, alone)
    device.counts = Counter()
    ours.ask_batch(pairs, **options)
    assert device.counts["launches"] == 8
    appends = 3 + 8 * 3 if demo.manifest.language_model.dialect == "decomposed" else 0
    assert device.counts["appends"] == appends
    assert device.counts["allocations"] == 0
    with refused("engine-slots", 5, 4, "--slots"):
        ours.ask_batch(pairs[:1] * 5)


def test_slots_that_cannot_be_bound_are_refused(tiny: dict[str, Bundle]) -> None:
    """TensorRT binds memory at multiples of 256 bytes, which the second cache of odd sizes is not at."""
    bundle = tiny["static"]
    backend = TensorRtBackend(bundle, FakeDevice(), FakeEngines(bundle, slots=2))
    backend.load(bundle.selector())
    with refused("slots-unaligned", 2, 77):
        backend.session(2)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_ends_where_the_cache_does(
    tiny: dict[str, Bundle], dialect: str, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = over_fake(tiny[dialect], monkeypatch)
    answer = ours.ask(image, "what is in the picture ?", max_tokens=300, ignore_eos=True)
    assert answer.finish_reason == "context"
    assert answer.prompt_tokens + len(answer.token_ids) == ROWS
    wanted = Pipeline(tiny["portable"]).ask(
        image, "what is in the picture ?", max_tokens=len(answer.token_ids), ignore_eos=True
    )
    assert answer.token_ids == wanted.token_ids
    with refused("prompt-too-long", ROWS):
        ours.ask(image, "what is in the picture ? " * 12)


def test_an_evaluation_goes_on_where_the_cache_ends(
    tiny: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny["static"]
    backend = TensorRtBackend(bundle, FakeDevice(), FakeEngines(bundle))
    backend.load(bundle.selector())
    monkeypatch.setattr(runner, "open_backend", lambda *_: backend)
    prompt = bundle.manifest.prompt.model_copy(update={"stop_ids": ()})
    endless = Bundle(bundle.path, bundle.manifest.model_copy(update={"prompt": prompt}))
    tokens = backend.to_device(np.zeros((1, 9, bundle.manifest.vision_encoder.width)))
    visual = VisualTokens(tokens, 9, (SeenImage(rows=np.arange(9), kept_indices=np.arange(9)),))
    asked = runner.Runner(endless, [])
    text, _, _ = asked._answer(visual, "what is there ?", Decoding(max_tokens=300))
    assert 40 < len(text.split()) < ROWS


def test_rows_are_appended_by_the_kernel_itself(
    tiny: dict[str, Bundle], image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel's own source, run by the emulator on the fake device's memory, in the place of its NumPy form."""
    library = abi.load(compile_emulated(tmp_path, EMULATED[0]))
    ours, device = over_fake(tiny["decomposed"], monkeypatch, FakeDevice(library=library))
    reference = Pipeline(tiny["portable"])
    for question in ("what is there ?", "how many red circle ?"):
        options = {"max_tokens": 6, "ignore_eos": True}
        same(ours.ask(image, question, **options), reference.ask(image, question, **options))
    assert device.counts["appends"] > 12


@pytest.mark.parametrize("dialect", DIALECTS)
def test_float16_and_signals_of_the_encoder(
    dialect: str, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a cache that are no multiple of 16 bytes; a selector that reads more than visual tokens."""
    # Heads of 10, or of 8 where TensorRT wants them to be a multiple of that.
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5} if dialect == "static" else {}
    checkpoint = make_checkpoint(tmp_path / "checkpoint", text=heads)
    options = {"selector": "visionzip", "keep": 12, "precision": "fp16"}
    for name in (dialect, "portable"):
        export(plan_of(checkpoint, dialect=name, **options), tmp_path / name)
    ours, _ = over_fake(Bundle.open(tmp_path / dialect), monkeypatch)
    assert ours.selector is not None
    assert len(ours.selector.signals) == 3
    sessions = []
    for one in (ours, Pipeline(tmp_path / "portable", threads=1)):
        answer = one.ask(image, "what is there ?", max_tokens=4, ignore_eos=True)
        width = one.bundle.manifest.vision_encoder.width
        visual = np.random.default_rng(2).standard_normal((1, 12, width)).astype(np.float16)
        session = OneSlot(one.backend, one.backend.to_device(visual))
        rows = one.bundle.manifest.language_model.embedding_rows
        steps = [session.extend([1, *range(rows, rows + 12), 8]).copy(), session.extend([9]).copy()]
        sessions.append((answer.kept_indices, *steps))
    for found, wanted in zip(*sessions, strict=True):
        assert np.allclose(found, wanted, atol=0.05)


def test_selectors_change_on_loaded_engines(
    demo: Bundle, pipeline: Pipeline, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, device = over_fake(demo, monkeypatch)
    for selector in ("none", "divprune-58", "none"):
        a, b = (p.with_selector(selector).ask(image, QUESTIONS[0]) for p in (ours, pipeline))
        same(a, b)
    assert device.counts["load language_model"] == device.counts["load divprune-58"] == 1


def test_a_budget_without_an_engine_is_told_before_anything_runs(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = over_fake(demo, monkeypatch, selectors=["divprune-58"])
    with refused("engines-for-other-keep", 576, 58):
        ours.with_selector("none")


def test_too_little_memory_is_told_with_the_numbers(demo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(free=1 << 20)
    with refused("gpu-memory-too-small", "KV cache", "1 MiB"):
        over_fake(demo, monkeypatch, device)
    assert device.counts["allocations"] == 0


def test_host_and_device(tiny: dict[str, Bundle]) -> None:
    bundle = tiny["static"]
    backend = TensorRtBackend(bundle, FakeDevice(), FakeEngines(bundle))
    values = np.random.default_rng(0).standard_normal((1, 9, 24))
    tensor = backend.to_device(values)
    assert tensor.dtype == np.float32
    assert np.array_equal(backend.to_host(tensor), values.astype(np.float32))
    with refused("batch-with-backend", "2 images", "tensorrt"):
        backend.encode({"pixels": np.zeros((2, 35, 35, 3), np.uint8)})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threads": 2}, ("threads-with-backend", "2 threads", "'tensorrt'")),
        ({"threads": 0}, ("threads-out-of-range", "0 threads")),
        ({}, ("dialect-not-for-tensorrt", "'portable'")),
    ],
)
def test_what_cannot_be_opened(demo_bundle: Path, options: dict[str, int], told: tuple[str, ...]) -> None:
    with refused(*told):
        open_backend(Bundle.open(demo_bundle), "tensorrt", **options)
