"""Clips in bundles for TensorRT: over a FAKE device against ONNX Runtime, and that against transformers.

Nothing here ran on TensorRT or on a GPU. Qwen-VL's frames are resized to one of a few sizes, and transformers gets them
as they were resized.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from answers import same
from clip_reference import FAMILIES, ONEVISION, QUESTION, STEPS, ClipReference, make_clip_checkpoint
from clips_made import noise
from conftest import run_module
from exporting import export, failures, plan_of
from fake_device import FakeContext, FakeDevice
from over_fake import over_fake
from PIL import Image
from qwen_checkpoints import QWEN, QWEN_VARIATIONS

from divprune_edge import Pipeline, Video
from divprune_edge.models.tensorrt import TENSORRT, TENSORRT_RTX
from divprune_edge.processing.patches import dimensions, most_of_clip
from divprune_edge.runtime.bundle import Bundle

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FRAMES, KEPT = 6, 9
DIALECTS = ("static", "decomposed")
SIZES = "64x56,96x40,40x96,48x48,32x32,24x40"
"""Of 56, 60, 60, 36, 16 and 15 visual tokens of 8 pixels. A frame has 40 at most in Qwen2.5-VL's processor, all frames
have 300 in Qwen3-VL's."""
CLIPS = ((6, (40, 50), 0.5), (5, (33, 80), 1.5), (4, (64, 20), 0.3), (2, (90, 100), 2.0), (3, (8, 20), 1.0))
GREEDY: dict[str, Any] = {"max_tokens": 6, "ignore_eos": True}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_qwen = pytest.mark.parametrize("family", QWEN)

Made = Callable[..., Bundle]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def get(family: str) -> Path:
        return make_clip_checkpoint(tmp_path_factory.mktemp(family) / "tiny", family)

    return get


@pytest.fixture(scope="module")
def made(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a bundle, exported once."""

    @cache
    def get(family: str, dialect: str, **options: Any) -> Bundle:
        options = {"keep": KEPT, "frames": FRAMES, **options}
        if dialect in DIALECTS:
            options["capacity"] = 512
        if family in QWEN:
            options.setdefault("resolution", SIZES)
        plan = plan_of(folder(family), dialect=dialect, **options)
        return Bundle.open(export(plan, tmp_path_factory.mktemp("bundle") / "tiny").folder)

    return get


def clips() -> list[Video]:
    return [Video(noise(count, size), fps) for count, size, fps in CLIPS]


@every_family
@pytest.mark.parametrize(
    ("dialect", "per", "selector"),
    [
        ("static", "image", None),
        ("decomposed", "image", "none"),
        ("static", "frame", "none"),
        ("decomposed", "frame", None),
    ],
)
def test_answers_are_those_of_onnx_runtime(
    made: Made,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    dialect: str,
    per: str,
    selector: str | None,
) -> None:
    """On the same bundle and on one of the portable graphs: of clips, of one with an image, of two, and of none."""
    options = {"per": per, "keep": KEPT if per == "image" else 4}
    bundle = made(family, dialect, **options)
    ours, device = over_fake(bundle, monkeypatch, images=2)
    cpu, portable = (Pipeline(one, threads=1) for one in (bundle, made(family, "portable", **options)))
    ours, cpu, portable = (one.with_selector(selector) for one in (ours, cpu, portable))
    allocated = device.counts["allocations"]
    image, videos = Image.fromarray(noise(1)[0]), clips()
    for asked in ((None, one) for one in (*videos, videos[3:], None)):
        answer = ours.ask(asked[0], QUESTION, video=asked[1], **GREEDY)
        for other in (cpu, portable):
            same(answer, other.ask(asked[0], QUESTION, video=asked[1], **GREEDY))
    same(*(one.ask(image, QUESTION, video=videos[2], **GREEDY) for one in (ours, cpu)))
    # A second clip, and the table of no clip's rows, are allocated when they first come.
    assert device.counts["allocations"] <= allocated + 4
    again = device.counts["allocations"], device.counts["pinned"]
    for video in videos:
        ours.ask(None, "how many red star ?", video=video, **GREEDY)
    assert (device.counts["allocations"], device.counts["pinned"]) == again


@every_family
def test_a_conversation_and_a_batch(made: Made, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    bundle = made(family, "static")
    ours, _ = over_fake(bundle, monkeypatch, images=3, slots=3)
    cpu, videos, image = Pipeline(bundle, threads=1), clips(), noise(1)[0]
    chats = [one.chat(None, video=videos[0]) for one in (ours, cpu)]
    for more in ({}, {"image": image}, {"video": videos[3]}):
        same(*(chat.ask(QUESTION, **more, **GREEDY) for chat in chats))
    pairs = [(videos[1], QUESTION), (None, QUESTION), ([videos[2], videos[4]], "how many ?")]
    for found, wanted in zip(ours.ask_batch(pairs, **GREEDY), cpu.ask_batch(pairs, **GREEDY), strict=True):
        same(found, wanted)


@every_qwen
@pytest.mark.parametrize("edition", [TENSORRT, TENSORRT_RTX], ids=lambda edition: edition.name)
def test_the_encoder_takes_a_grid_at_a_time(
    made: Made, monkeypatch: pytest.MonkeyPatch, family: str, edition: Any
) -> None:
    """By the profile of its size, or by one that spans them all; so no clip takes more than the largest image."""
    bundle = made(family, "decomposed")
    patches = bundle.manifest.preprocessing.patches
    assert patches is not None
    ours, device = over_fake(bundle, monkeypatch, edition=edition)
    used: list[tuple[int, int]] = []
    enqueue = FakeContext.enqueue

    def watch(context: FakeContext) -> None:
        if context.plan.title == "vision_encoder":
            used.append((context.profile, context.shapes["pixels"][1]))
        enqueue(context)

    monkeypatch.setattr(FakeContext, "enqueue", watch)
    sizes = [one["patches"] for one in dimensions(patches)]
    for video, grids in zip(clips(), (3, 3, 2, 1, 2), strict=True):
        used.clear()
        device.counts.clear()
        ours.ask(None, QUESTION, video=video, max_tokens=1)
        assert len(used) == device.counts["vision_encoder"] == grids
        assert device.counts["assemble"] == 1
        ((profile, n),) = set(used)
        assert profile == 0 if edition is TENSORRT_RTX else sizes[profile] == n


@every_qwen
def test_the_kernel_picks_from_each_time(made: Made, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    bundle = made(family, "static", per="frame", keep=4)
    device = FakeDevice()
    ours, _ = over_fake(bundle, monkeypatch, device, edition=TENSORRT_RTX, kernel=True)
    cpu, allocated = Pipeline(bundle, threads=1), device.counts["allocations"]
    for video in clips():
        same(*(one.ask(None, QUESTION, video=video, **GREEDY) for one in (ours, cpu)))
    assert device.counts["max_min"] == 3 + 3 + 2 + 1 + 2
    assert device.counts["allocations"] == allocated


ODD = [
    name
    for name in QWEN_VARIATIONS
    if name.partition(", ")[2]
    in (
        "plain",
        "patches that are visual tokens",
        "nine patches a token",
        "one frame",
        "windows of three tokens",
        "windows everywhere",
        "grouped queries",
        "no deepstack",
        "more deepstack than layers",
        "more places than patches",
    )
]


@pytest.mark.parametrize("name", ODD)
def test_equals_transformers_on_the_same_resized_frames(name: str, tmp_path: Path) -> None:
    """It does not resize what is resized already: unpruned, and pruned with both ways to pick."""
    torch.set_num_threads(1)
    options = dict(QWEN_VARIATIONS[name])
    family = options.pop("family")
    checkpoint = make_clip_checkpoint(tmp_path / "checkpoint", family, **options)
    opened, token = [], plan_of(checkpoint, KEPT).preprocessing.patches
    assert token is not None
    sizes = ",".join(
        f"{w * token.factor}x{h * token.factor}" for w, h in ((8, 7), (12, 5), (9, 4), (6, 6), (4, 4))
    )
    for per in ("image", "frame"):
        plan = plan_of(checkpoint, 4, frames=FRAMES, per=per, resolution=sizes)
        opened.append(Pipeline(export(plan, tmp_path / per).folder, threads=1))
    stock = ClipReference(checkpoint, family, opened[0].bundle.manifest)
    greedy, seen = {"max_tokens": STEPS, "ignore_eos": True}, set()
    for count, size, fps in CLIPS[:4]:
        frames = noise(count, size)
        inputs = stock.inputs(frames, fps)
        seen.add(tuple(inputs["video_grid_thw"][0, 1:].tolist()))
        whole = opened[0].with_selector("none").ask(None, QUESTION, video=frames, fps=fps, **greedy)
        assert whole.prompt_tokens == inputs["input_ids"].shape[1]
        assert list(whole.token_ids) == stock.generated(inputs)
        for pipeline in opened:
            pruned = pipeline.ask(None, QUESTION, video=frames, fps=fps, **greedy)
            grids = -(-count // token.temporal)
            assert pruned.image_tokens == (4 * (grids if pipeline is opened[1] else 1),)
            assert list(pruned.token_ids) == stock.spliced(inputs, pruned.kept_indices)
    assert len(seen) > 1


@every_family
def test_bundles_verify(made: Made, folder: Callable[[str], Path], tmp_path: Path, family: str) -> None:
    sizes = {} if family == ONEVISION else {"resolution": SIZES}
    for dialect in DIALECTS:
        plan = plan_of(folder(family), KEPT, frames=3, per="frame", dialect=dialect, capacity=512, **sizes)
        assert failures(plan, export(plan, tmp_path / dialect).folder) == set()


def test_sizes_that_follow_have_some_for_the_frames(folder: Callable[[str], Path]) -> None:
    """So that clips of the most frames have about as many tokens as they may."""
    for family in QWEN:
        alone = plan_of(folder(family), KEPT, dialect="static").preprocessing.patches
        plan = plan_of(folder(family), KEPT, dialect="static", frames=12)
        facts = plan.preprocessing
        assert alone is not None and facts.patches is not None
        assert set(alone.sizes) < set(facts.patches.sizes)
        most, _ = most_of_clip(facts)
        whole = 300 // 2 if family == "qwen3_vl" else 40 * 6
        assert 0.7 * whole < most <= whole
        assert plan.candidates == max(most, plan.spec.tokens)


def test_room_for_the_times_between_a_clips_tokens(folder: Callable[[str], Path]) -> None:
    """Which Qwen3-VL reads as text, and Qwen2.5-VL does not."""
    rooms = {}
    for family in QWEN:
        bare, with_clips = (plan_of(folder(family), 2, dialect="static", frames=f) for f in (None, 64))
        assert bare.capacity is not None and with_clips.capacity is not None
        rooms[family] = with_clips.capacity - bare.capacity
    assert rooms == {"qwen2_5_vl": 0, "qwen3_vl": 320}


@every_qwen
def test_exported_and_asked_as_a_user_would(
    folder: Callable[[str], Path], tmp_path: Path, command: Callable[..., Any], family: str
) -> None:
    clip, bundle = tmp_path / "frames", tmp_path / "bundle"
    clip.mkdir()
    for i, frame in enumerate(noise(4)):
        Image.fromarray(frame).save(clip / f"{i}.png")
    made = run_module(
        *("export", "--model", str(folder(family)), "--resolution", "64x56,32x32", "--frames", "4"),
        *("--dialect", "static", "--keep", "9", "--no-verify", "--output", str(bundle)),
    )
    assert made.returncode == 0, made.stderr
    found = command("ask", bundle, "--video", clip, "--json", "--max-tokens", "2", QUESTION)
    assert found.code == 0, found.err
    assert json.loads(found.out)["image_tokens"] == [KEPT]
    shown = " ".join(command("info", bundle).out.split())
    assert "up to 56 visual tokens of an image of any size" in shown
    # Of 56 tokens of a frame Qwen2.5-VL's processor allows 40, and 150 of two times Qwen3-VL's.
    most = 2 * 56 if family == "qwen3_vl" else 56
    assert "at most 4 frames of each, resized as images are" in shown
    assert f"picked from each clip, of up to {most} visual tokens" in shown
