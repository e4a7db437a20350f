"""Images of several tiles on backend ``tensorrt``, over the fake device of ``fake_device.py``, against ONNX Runtime.

Nothing here ran on TensorRT or on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NEXT, ONEVISION, make_checkpoint
from exporting import export, plan_of
from fake_device import FakeDevice, FakeEngines
from images_made import noise_pixels
from raising import refused

from divprune_edge.export.add_selector import add_selector
from divprune_edge.runtime.backends import open_backend
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.vision import Vision

FAMILIES = {"next": NEXT, "onevision": ONEVISION}
KEEP = {"image": 85, "tile": 26}
"""More than some images have, or some tiles: the base has no newlines."""
SIZES = ((70, 70), (35, 36), (12, 70), (70, 30), (105, 105), (200, 65))
Bundles = tuple[Bundle, Bundle]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: make_checkpoint(folder / name, **options) for name, options in FAMILIES.items()}


@pytest.fixture(scope="module", params=[(f, p) for f in FAMILIES for p in KEEP], ids="-".join)
def bundles(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundles:
    """A bundle for TensorRT, with two more selectors, and the same for ONNX Runtime."""
    family, per = request.param
    folder, opened = tmp_path_factory.mktemp("bundles"), []
    dialect = "static" if family == "next" else "decomposed"
    for name, capacity in ((dialect, 512), ("portable", None)):
        plan = plan_of(
            checkpoints[family], KEEP[per], per=per, dialect=name, capacity=capacity, signals="all"
        )
        place = export(plan, folder / name).folder
        for selector in ("uniform", "visionzip", "vtc-cls") if family == "next" else ("uniform",):
            add_selector(place, selector, keep=9, prune=None, force=False, verify=False)
        opened.append(Bundle.open(place))
    return opened[0], opened[1]


def picture(size: tuple[int, int], seed: int = 0) -> Any:
    return noise_pixels(*size, seed=seed)


def backends(bundles: Bundles, device: FakeDevice) -> tuple[TensorRtBackend, Any]:
    return TensorRtBackend(bundles[0], device, FakeEngines(bundles[0])), open_backend(bundles[1], "cpu", 1)


def test_what_is_seen_is_what_the_portable_graphs_see(bundles: Bundles) -> None:
    """Of images in one run of the encoder and in two, with more rows than K and with fewer; nothing is allocated."""
    device = FakeDevice()
    ours, theirs = backends(bundles, device)
    for selector in [*bundles[0].manifest.selectors, None]:
        ours.load(selector)
        theirs.load(selector)
        allocated = device.counts["allocations"]
        short = False
        for size in (*SIZES, *SIZES):
            seen = []
            for bundle, backend in zip(bundles, (ours, theirs), strict=True):
                vision = Vision(bundle, backend)
                images = vision.read([picture(size)])
                found = vision.see(images, selector)
                tokens = backend.to_host(found.tokens)
                assert tokens.shape[:2] == (1, found.length)
                assert len(found.rows) == vision.count(images[0], selector)
                short |= len(found.rows) < found.length
                seen.append((found.rows, found.kept_indices, tokens[0, found.rows]))
                del found
            (*found_, values), (*wanted, tokens) = seen
            assert all(map(np.array_equal, found_, wanted))
            assert np.allclose(values, tokens, atol=1e-5)
        assert short or (selector is not None and selector.keep == 9)
        assert device.counts["allocations"] == allocated, selector


def test_the_encoder_takes_a_few_tiles_at_a_time(bundles: Bundles) -> None:
    manifest = bundles[0].manifest
    assert manifest.assemble is not None
    device = FakeDevice()
    ours, _ = backends(bundles, device)
    selector = bundles[0].selector()
    ours.load(selector)
    vision = Vision(bundles[0], ours)
    for size in SIZES:
        (image,) = vision.read([picture(size)])
        device.counts.clear()
        vision.see([image], selector)
        tiles = len(image.pixels)
        assert device.counts["vision_encoder"] == -(-tiles // manifest.tiles_at_once)
        assert device.counts["assemble"] == 1
        assert selector is not None
        groups = vision.encode([image], [selector]).valid.sum(axis=1)
        assert device.counts[selector.id] == (groups > selector.keep).sum()
    largest = max(len(vision.read([picture(size)])[0].pixels) for size in SIZES)
    assert largest == manifest.assemble.tiles


def test_answers_are_those_of_the_portable_graphs(bundles: Bundles) -> None:
    device = FakeDevice()
    ours, theirs = backends(bundles, device)
    selector = bundles[0].selector()
    table = bundles[0].manifest.language_model.embedding_rows
    for size in SIZES[:3]:
        logits = []
        for bundle, backend in zip(bundles, (ours, theirs), strict=True):
            backend.load(selector)
            vision = Vision(bundle, backend)
            found = vision.see(vision.read([picture(size)]), selector)
            session = backend.session()
            slot = session.add(found.tokens)
            first = session.extend(slot, [1, 7, *(table + found.rows), 8]).logits
            logits.append((first.copy(), session.step({slot: 9})[slot].logits.copy()))
        for found_, wanted in zip(*logits, strict=True):
            assert np.allclose(found_, wanted, atol=2e-4)


def test_too_little_memory_is_told_before_anything_is_allocated(bundles: Bundles) -> None:
    device = FakeDevice(free=1 << 18)
    ours, _ = backends(bundles, device)
    with refused("gpu-memory-too-small", "tensors between the engines"):
        ours.load(bundles[0].selector())
    assert device.counts["allocations"] == 0


def test_more_tiles_at_once_than_the_engine_takes(bundles: Bundles) -> None:
    ours, _ = backends(bundles, FakeDevice())
    most = bundles[0].manifest.tiles_at_once
    with refused("batch-with-backend", most + 1, most):
        ours.encode({"pixels": np.zeros((most + 1, 35, 35, 3), np.uint8)})
