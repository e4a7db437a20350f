"""Images of any size, resized to one of a few: on backend ``tensorrt`` over a FAKE device, against ONNX Runtime.

Nothing here ran on TensorRT or on a GPU. ONNX Runtime's answers are held against transformers', which gets the images
as they were resized.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import agree, same
from exporting import close, export, plan_of
from fake_device import FakeContext, FakeDevice, FakeEngines
from over_fake import over_fake
from PIL import Image
from plugins_emulation import EMULATED, compile_emulated
from qwen_checkpoints import images_of, make_qwen_checkpoint
from raising import refused

from divprune_edge import Pipeline
from divprune_edge.export.add_selector import add_selector
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX
from divprune_edge.plugins import abi
from divprune_edge.processing.patches import dimensions, fitted_size
from divprune_edge.runtime import pipeline as pipelines
from divprune_edge.runtime.backends.tensorrt import TensorRtBackend
from divprune_edge.runtime.bundle import Bundle

QUESTION, LATER = "what is in the picture ?", "how many red star ?"
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
DIALECTS = ("static", "decomposed")
SIZES = "64x64,96x40,40x96,32x32,120x32"
"""Visual tokens of 8 pixels: fewer of the fourth than of any other, as many of the second and third, 60 of the last."""
IMAGES = ((70, 100), (64, 64), (20, 90), (33, 30), (300, 120), (41, 160))
OPTIONS: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_dialect = pytest.mark.parametrize("dialect", DIALECTS)

Made = Callable[..., Bundle]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def get(family: str) -> Path:
        return make_qwen_checkpoint(
            tmp_path_factory.mktemp(family) / "tiny",
            family=family,
            text={"max_position_embeddings": 512},
            processor={"size": {"shortest_edge": 16 * 64, "longest_edge": 64 * 64}},
        )

    return get


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a bundle, exported once."""

    @cache
    def get(family: str, dialect: str, numbering: str = "original", resolution: str = SIZES) -> Bundle:
        options = {"capacity": 320} if dialect in DIALECTS else {}
        plan = plan_of(
            checkpoint(family),
            keep=9,
            dialect=dialect,
            numbering=numbering,
            resolution=resolution,
            **options,
        )
        return Bundle.open(export(plan, tmp_path_factory.mktemp("bundle") / "tiny").folder)

    return get


@every_family
@every_dialect
@pytest.mark.parametrize("numbering", ["original", "compact"])
@pytest.mark.parametrize("selector", [None, "none"])
def test_answers_are_those_of_onnx_runtime(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    dialect: str,
    numbering: str,
    selector: str | None,
) -> None:
    """On the same bundle and on one of the portable graphs: of every size, of two images, and of none."""
    bundle = made(family, dialect, numbering)
    ours, device = over_fake(bundle, monkeypatch, images=2)
    cpu, portable = (Pipeline(one, threads=1) for one in (bundle, made(family, "portable", numbering)))
    ours, cpu, portable = (one.with_selector(selector) for one in (ours, cpu, portable))
    allocated = device.counts["allocations"]
    images = images_of(IMAGES)
    for asked in (*images, images[:2], images[2:4], None):
        answer = ours.ask(asked, QUESTION, **OPTIONS)
        same(answer, cpu.ask(asked, QUESTION, **OPTIONS))
        same(answer, portable.ask(asked, QUESTION, **OPTIONS))
    # A second image, and the table of no image's rows, are allocated when they first come.
    assert device.counts["allocations"] <= allocated + 4
    again = device.counts["allocations"], device.counts["pinned"]
    for asked in (*images, images[2:4]):
        ours.ask(asked, LATER, **OPTIONS)
    assert (device.counts["allocations"], device.counts["pinned"]) == again


@every_family
def test_a_conversation_and_a_batch(made: Made, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    bundle = made(family, "static")
    ours, _ = over_fake(bundle, monkeypatch, images=2, slots=4)
    cpu, images = Pipeline(bundle, threads=1), images_of(IMAGES)
    chats = [pipeline.chat(images[0]) for pipeline in (ours, cpu)]
    for question, image in ((QUESTION, None), (LATER, images[4]), (QUESTION, None)):
        more = {"image": image} if image is not None else {}
        same(*(chat.ask(question, **more, **OPTIONS) for chat in chats))
    pairs = [(images[1], QUESTION), (images[2:4], LATER), (None, QUESTION), (images[5], LATER)]
    for found, wanted in zip(ours.ask_batch(pairs, **OPTIONS), cpu.ask_batch(pairs, **OPTIONS), strict=True):
        same(found, wanted)


@every_family
@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_every_grid_has_a_profile(
    made: Made, monkeypatch: pytest.MonkeyPatch, family: str, edition: Any
) -> None:
    """Of its own, or one that spans them all; grids that lie and stand share one."""
    bundle = made(family, "static")
    patches = bundle.manifest.preprocessing.patches
    ours, _ = over_fake(bundle, monkeypatch, edition=edition)
    used: list[int] = []
    enqueue = FakeContext.enqueue

    def watch(context: FakeContext) -> None:
        if context.plan.title == "vision_encoder":
            used.append(context.profile)
        enqueue(context)

    monkeypatch.setattr(FakeContext, "enqueue", watch)
    shapes = [(64, 64), (40, 96), (96, 40), (32, 32), (32, 120)]
    assert [fitted_size(*shape, patches) for shape in shapes] == list(patches.sizes)
    for image in images_of(shapes):
        ours.ask(image, QUESTION, max_tokens=1)
    sizes = [one["patches"] for one in dimensions(patches)]
    assert sizes == sorted(sizes)
    if edition is TENSORRT_RTX:
        assert used == [0] * len(shapes)
    elif family == "qwen3_vl":
        assert (sizes, used) == ([64, 240, 256], [2, 1, 1, 0, 1])
    else:
        # The last has as many patches as the second and third, but fewer windows.
        assert (sizes, used) == ([64, 240, 240, 256], [3, 2, 2, 0, 1])


@pytest.mark.parametrize("library", [False, True], ids=["reference", "emulated"])
@every_family
def test_the_kernel_looks_at_the_token_alone(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    family: str,
    library: bool,
) -> None:
    """Behind it in a row lies what it must neither compare nor leave behind."""
    bundle = made(family, "static")
    folder = tmp_path_factory.getbasetemp() / "emulated"
    emulated = None
    if library:
        folder.mkdir(exist_ok=True)
        emulated = abi.load(compile_emulated(folder, EMULATED[0]))
    device = FakeDevice(library=emulated)
    ours, _ = over_fake(bundle, monkeypatch, device, edition=TENSORRT_RTX, kernel=True, images=2)
    cpu, images = Pipeline(bundle, threads=1), images_of(IMAGES)
    allocated = device.counts["allocations"]
    for image in images:
        same(ours.ask(image, QUESTION, **OPTIONS), cpu.ask(image, QUESTION, **OPTIONS))
    assert device.counts["max_min"] == len(images)
    assert device.counts["allocations"] == allocated
    assert not [name for name in device.counts if name.startswith("divprune")]
    # What is kept is the rows, whole, bit for bit.
    vision, backend = ours.vision, ours.backend
    candidates = vision.encode(vision.read([images[0]]), [ours.selector])
    before = backend.to_host(candidates.encoded.tokens)
    seen = vision.select(candidates, ours.selector)
    assert np.array_equal(backend.to_host(seen.tokens)[0], before[0, seen.kept_indices])
    assert before.shape[2] == bundle.manifest.vision_encoder.width


def test_engines_for_other_sizes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are the same whatever the sizes, so what the engine takes is asked of it."""
    bundle, other = made("qwen3_vl", "static"), made("qwen3_vl", "static", "original", "64x64,32x32")
    opened = FakeEngines(other)
    device = FakeDevice()
    with monkeypatch.context() as patch:
        patch.setattr(pipelines, "open_backend", lambda *_: TensorRtBackend(bundle, device, opened))
        ours = Pipeline(bundle, backend="tensorrt")
    wide, square = images_of([(40, 96), (64, 64)])
    ours.ask(square, QUESTION, max_tokens=1)
    with refused("engine-image-size", "vision encoder", 240, "--force"):
        ours.ask(wide, QUESTION, max_tokens=1)


@pytest.mark.parametrize("name", ["dart", "uniform"])
def test_a_selector_is_added(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(made("qwen3_vl", "decomposed").path, tmp_path / "bundle"))
    add_selector(folder, name, keep=5, prune=None, force=False, verify=True)
    bundle = Bundle.open(folder)
    ours, _ = over_fake(bundle, monkeypatch)
    cpu = Pipeline(bundle, threads=1)
    for image in images_of(IMAGES[:2]):
        same(*(one.with_selector(name).ask(image, QUESTION, **OPTIONS) for one in (ours, cpu)))


@every_family
def test_equals_transformers_on_the_same_resized_image(
    made: Made, checkpoint: Callable[[str], Path], family: str
) -> None:
    """The patches bit for bit, and the answer: transformers does not resize what is resized already."""
    pytest.importorskip("torch")
    from qwen_reference import QwenReference

    bundle = made(family, "portable")
    facts = bundle.manifest.preprocessing
    assert facts.patches is not None
    stock, pipeline = QwenReference(checkpoint(family)), Pipeline(bundle, threads=1).with_selector("none")
    stock._processor.do_resize = False
    forbidden = tuple(bundle.manifest.prompt.forbidden_ids)
    for image in images_of(IMAGES):
        height, width = fitted_size(image.height, image.width, facts.patches)
        resized = image.resize((width, height), Image.Resampling(facts.resample))
        inputs = stock.inputs(stock.rendered([(QUESTION, 1)]), [resized])
        assert inputs["image_grid_thw"][0, 1:].tolist() == [
            side // facts.patches.patch for side in (height, width)
        ]
        (read,) = pipeline.vision.read([image])
        mean, std = (np.repeat(values, read.pixels.shape[2] // 3) for values in (facts.mean, facts.std))
        assert close(
            (read.pixels[0] * facts.rescale_factor - mean) / std, inputs["pixel_values"].numpy(), 1e-6
        )
        answer = pipeline.ask(image, QUESTION, **OPTIONS)
        agree(answer.token_ids, *stock.generated(inputs, OPTIONS["max_tokens"], forbidden))


def test_info_says_what_images_are_resized_to(
    made: Made, checkpoint: Callable[[str], Path], command: Any, tmp_path: Path
) -> None:
    shown = " ".join(command("info", made("qwen3_vl", "portable").path).out.split())
    assert "up to 64 visual tokens of an image of any size" in shown
    assert "nearest of 64 x 64, 96 x 40, 40 x 96, 32 x 32, 120 x 32 pixels" in shown
    facts = json.loads(command("info", made("qwen3_vl", "portable").path, "--json").out)
    assert facts["preprocessing"]["patches"]["sizes"][1] == [40, 96]
    own = export(plan_of(checkpoint("qwen3_vl"), keep=9), tmp_path / "bundle").folder
    shown = " ".join(command("info", own).out.split())
    assert "resized to 1024 to 4096 pixels, in steps of 8" in shown
