"""``cuda.py`` and ``plan.py`` over FAKE modules of CUDA and TensorRT: what is called, and what a failure says."""

from __future__ import annotations

import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import make_checkpoint
from exporting import export, plan_of
from fake_cuda import FakeRuntime, FakeTensorRt, cudaError_t
from fake_device import FakeEngines
from images_made import noise_pixels
from one_slot import OneSlot
from plugins_emulation import write_library
from raising import failed, refused

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.models.tensorrt import Edition
from divprune_edge.plugins.abi import Append
from divprune_edge.plugins.loader import find_library
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines import cuda, facts, opening
from divprune_edge.runtime.engines.cuda import CudaDevice
from divprune_edge.runtime.pipeline import Pipeline

GIB = 1 << 30


class Here:
    """A device over fakes, and the fakes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runtime = FakeRuntime()
        self.fake = self.runtime.device
        self.tensorrt = FakeTensorRt(self.fake)
        monkeypatch.setattr(cuda, "import_cuda", lambda: self.runtime)
        monkeypatch.setitem(sys.modules, "tensorrt", self.tensorrt)

    def open(self) -> CudaDevice:
        device = CudaDevice()
        # The kernel wants a GPU.
        device.append_rows = self.fake.append_rows  # type: ignore[method-assign]
        return device


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = make_checkpoint(folder / "checkpoint")
    for dialect in ("static", "decomposed", "portable"):
        export(plan_of(checkpoint, keep=9, dialect=dialect), folder / dialect)
    return {name: Bundle.open(folder / name) for name in ("static", "decomposed", "portable")}


@pytest.mark.parametrize("dialect", ["static", "decomposed"])
def test_a_sequence_through_both_layers(here: Here, bundles: dict[str, Bundle], dialect: str) -> None:
    """Images, selection, prefill, decode: as over ONNX Runtime."""
    bundle = bundles[dialect]
    backends = [
        TensorRtBackend(bundle, here.open(), FakeEngines(bundle)),
        open_backend(bundles["portable"], "cpu", threads=1),
    ]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 35, 35, 3), dtype=np.uint8)
    rows = bundle.manifest.language_model.embedding_rows
    found: list[list[Any]] = []
    for backend in backends:
        selector = bundle.selector()
        backend.load(selector)
        visual, kept = backend.select(
            backend.encode({"pixels": pixels}), selector, np.ones((1, 25), np.bool_)
        )
        session = OneSlot(backend, visual)
        logits = [session.extend([1, *range(rows, rows + 9), 8]).copy()]
        logits += [session.extend([token]).copy() for token in (4, 9, 11)]
        again = OneSlot(backend, visual, session.rows(4))
        logits += [again.extend([5, 6]).copy(), again.extend([7]).copy()]
        found.append([kept, *logits])
    for ours, wanted in zip(*found, strict=True):
        assert np.allclose(ours, wanted, atol=2e-4)
    assert here.tensorrt.host_code == [False] * 3
    assert here.fake.counts["launches"] >= 3


def test_a_pipeline_opens_the_backend_by_its_name(
    here: Here, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From ``backend="tensorrt"`` down to the fakes; only where engines come from is told."""

    def engines(bundle: Bundle, selector: Any, *, before: Any, edition: Edition) -> Any:
        return FakeEngines(bundle)(selector, before=before)

    monkeypatch.setattr(opening, "open_engines", engines)
    image = noise_pixels(50, 40, 1)
    options = {"max_tokens": 5, "ignore_eos": True}
    answers = [
        Pipeline(bundles[dialect], backend=backend).ask(image, "what is there ?", **options)
        for dialect, backend in (("static", "tensorrt"), ("portable", "cpu"))
    ]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].backend == "tensorrt"


def test_pieces_within_the_device(here: Here) -> None:
    """The first values of rows, laid together."""
    device = here.open()
    wide, narrow, host = device.allocate(8 * 64), device.allocate(8 * 24), device.pinned(8 * 64)
    host.array[:] = np.arange(8 * 64) % 251
    device.upload(wide.address, host.address, 8 * 64)
    device.copy_pieces(narrow.address, 24, wide.address, 64, 24, 8)
    device.synchronize()
    rows = host.array.reshape(8, 64)[:, :24].copy()
    device.download(host.address, narrow.address, 8 * 24)
    device.synchronize()
    assert np.array_equal(host.array[: 8 * 24].reshape(8, 24), rows)


def test_memory_is_freed_with_its_object(here: Here) -> None:
    device = here.open()
    memory, host = device.allocate(1000), device.pinned(64)
    host.array[:] = np.arange(64)
    device.upload(memory.address + 256, host.address, 64)
    host.array[:32] = 0
    device.download(host.address, memory.address + 256, 64)
    device.synchronize()
    assert np.array_equal(host.array[32:], np.arange(32, 64))
    del memory, host
    gc.collect()
    assert {"cudaFree", "cudaFreeHost"} <= set(here.runtime.calls)
    assert not here.fake.live


def test_what_a_device_says_of_itself(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    device = here.open()
    assert device.name == "Fake GPU"
    here.fake._free = GIB
    monkeypatch.setattr(facts, "host_memory", lambda: (3 * GIB, GIB))
    assert device.free_bytes() == GIB
    here.runtime.integrated = 1
    assert device.free_bytes() == 3 * GIB, "what the page cache would give back counts where memory is shared"


def test_no_gpu_is_a_sentence(here: Here) -> None:
    here.runtime.count = 0
    with refused("gpu-missing", "--backend cpu"):
        here.open()
    here.runtime.fail["cudaGetDeviceCount"] = cudaError_t.cudaErrorInsufficientDriver
    with refused("cuda-unavailable", "look for a GPU", "cudaErrorInsufficientDriver: what CUDA says"):
        here.open()


CALLS = {
    "cudaMalloc": lambda d: d.allocate(9),
    "cudaMallocHost": lambda d: d.pinned(9),
    "cudaMemsetAsync": lambda d: d.clear(0, 1),
    "cudaMemcpyAsync": lambda d: d.upload(0, 0, 1),
    "cudaMemcpy2DAsync": lambda d: d.download_pieces(0, 1, 0, 1, 1, 1),
    "cudaStreamBeginCapture": lambda d: d.capture(lambda: None),
    "cudaStreamEndCapture": lambda d: d.capture(lambda: None),
    "cudaGraphInstantiate": lambda d: d.capture(lambda: None),
    "cudaGraphLaunch": lambda d: d.launch(d.capture(lambda: None)),
    "cudaStreamSynchronize": lambda d: d.synchronize(),
    "cudaMemGetInfo": lambda d: d.free_bytes(),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_failure_is_one_sentence(here: Here, name: str) -> None:
    device = here.open()
    here.runtime.fail[name] = cudaError_t.cudaErrorIllegalAddress
    with failed("gpu-failed", "(cudaErrorIllegalAddress: what CUDA says)"):
        CALLS[name](device)


def test_memory_that_runs_out_is_the_users_to_mend(here: Here) -> None:
    device = here.open()
    here.runtime.fail["cudaMalloc"] = cudaError_t.cudaErrorMemoryAllocation
    with refused("gpu-memory-too-small", "900 bytes"):
        device.allocate(900)


def test_a_failed_capture_leaves_the_stream_usable(here: Here) -> None:
    device = here.open()

    def fails() -> None:
        raise DivpruneError("Something in the middle.", code="gpu-failed")

    with failed("gpu-failed", "in the middle"):
        device.capture(fails)
    assert here.runtime.calls[-3:] == ["cudaStreamEndCapture", "cudaGraphDestroy", "cudaGetLastError"]
    here.runtime.fail["cudaStreamEndCapture"] = cudaError_t.cudaErrorIllegalAddress
    for work in (fails, lambda: None):
        with failed("gpu-failed"):
            device.capture(work)
        assert here.runtime.calls[-1] == "cudaGetLastError", "the next call does not find this failure"
        here.fake.end_capture()
    here.runtime.fail.clear()
    device.capture(lambda: None)
    made = [name for name in here.runtime.calls if name in ("cudaGraphInstantiate", "cudaGraphUpload")]
    assert made == ["cudaGraphInstantiate", "cudaGraphUpload"]


def test_what_tensorrt_refuses_is_one_sentence(here: Here, bundles: dict[str, Bundle]) -> None:
    bundle = bundles["static"]
    data = FakeEngines(bundle)(None, before=None).plans["vision_encoder"]
    device = here.open()
    here.tensorrt.refuse = {"deserialize"}
    with failed("engine-not-loaded", "vision", "magic tag does not match"):
        device.load(data, "vision", "a digest")
    here.tensorrt.refuse = {"profile"}
    loaded, scratch = partial(device.load, data, "vision", "a digest"), device.allocate(4096)
    with failed("engine-failed", "vision", "profile was refused"):
        loaded().context(0, scratch)
    here.tensorrt.refuse = set()
    context = loaded().context(0, scratch)
    here.tensorrt.refuse = {"shape", "address", "enqueue"}
    with failed("engine-failed", "[1, 2]", "pixels", "vision"):
        context.set_shape("pixels", (1, 2))
    with failed("engine-failed", "pixels", "vision"):
        context.set_address("pixels", 256)
    with failed("engine-failed", "run", "vision"):
        context.enqueue()
    here.tensorrt.location = 1
    with failed("engine-host-memory", "pixels"):
        loaded()


def test_the_plugin_is_registered_before_its_plan(
    here: Here, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    bundle = bundles["static"]
    plans = FakeEngines(bundle)(bundle.selector(), before=None).plans
    device = here.open()
    device.load(plans["vision_encoder"], "vision", "a digest")
    assert here.tensorrt.registry.loaded == []
    library = find_library(write_library(tmp_path))
    device.load(plans["divprune-9"], "divprune-9", "a digest", library)
    assert here.tensorrt.registry.loaded == [str(library.path)]
    here.tensorrt.__version__ = "11.4.0"  # type: ignore[misc]
    here.tensorrt.registry.loaded.clear()
    with refused("plugin-tensorrt-mismatch", "10.16.0", "11.4.0"):
        device.load(plans["divprune-9"], "divprune-9", "a digest", library)


def test_a_kernel_that_is_not_built_is_a_sentence(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UserError("There is no plugin library at 'x': build it.", code="plugin-missing")

    monkeypatch.setattr(cuda, "find_library", missing)
    with refused("plugin-missing"):
        CudaDevice().append_rows(Append(), 256, 256, 256)
