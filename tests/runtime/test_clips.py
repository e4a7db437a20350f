"""Clips: what is answered about them is what transformers answers, unpruned and pruned; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import same
from clip_reference import FAMILIES, ONEVISION, QUESTION, STEPS, ClipReference, make_clip_checkpoint
from clips_made import noise, write_clip
from exporting import export, plan_of
from PIL import Image
from raising import assert_told, refused

from divprune_edge import Pipeline, Video
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.processing.prompt import user_turn

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

FRAMES, KEPT = 6, 9
GREEDY: dict[str, Any] = {"max_tokens": STEPS, "ignore_eos": True}
every_family = pytest.mark.parametrize("family", FAMILIES)

Opened = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: make_clip_checkpoint(tmp_path_factory.mktemp(family) / "tiny", family))


@pytest.fixture(scope="module")
def opened(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    @cache
    def get(family: str, **options: Any) -> Pipeline:
        plan = plan_of(folder(family), **{"keep": KEPT, "frames": FRAMES, **options})
        return Pipeline(export(plan, tmp_path_factory.mktemp("bundle") / "tiny").folder, threads=1)

    return get


@pytest.fixture(scope="module")
def reference(folder: Callable[[str], Path], opened: Opened) -> Callable[[str], ClipReference]:
    torch.set_num_threads(1)
    return cache(lambda family: ClipReference(folder(family), family, opened(family).bundle.manifest))


# --- transformers' own -----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize(
    ("count", "size", "fps"), [(6, (40, 50), 2.0), (5, (33, 80), 1.5), (4, (64, 48), 0.3)]
)
def test_unpruned_is_transformers_own_generate(
    family: str,
    count: int,
    size: tuple[int, int],
    fps: float,
    opened: Opened,
    reference: Callable[[str], ClipReference],
) -> None:
    frames = noise(count, size)
    answer = opened(family).with_selector("none").ask(None, QUESTION, video=frames, fps=fps, **GREEDY)
    inputs = reference(family).inputs(frames, fps)
    ids = inputs["input_ids"]
    assert answer.prompt_tokens == ids.shape[1]
    video = opened(family).bundle.manifest.prompt.video_token_id
    assert answer.image_tokens == (int((ids == video).sum()),)
    assert list(answer.token_ids) == reference(family).generated(inputs)
    assert len(set(answer.token_ids)) > 1


@every_family
@pytest.mark.parametrize("per", ["image", "frame"])
def test_pruned_is_what_is_spliced_by_hand(
    family: str, per: str, opened: Opened, reference: Callable[[str], ClipReference]
) -> None:
    frames, pipeline = noise(6, (40, 50)), opened(family, per=per, keep=4)
    answer = pipeline.ask(None, QUESTION, video=np.stack(frames), fps=0.5, **GREEDY)
    groups = 1 if per == "image" else 6 if family == ONEVISION else 3
    assert answer.image_tokens == (4 * groups,)
    whole = pipeline.with_selector("none").ask(None, QUESTION, video=frames, max_tokens=1).visual_tokens
    each = (whole - (family == ONEVISION)) // groups
    assert np.bincount(np.minimum(answer.kept_indices // each, groups - 1)).tolist() == [4] * groups
    inputs = reference(family).inputs(frames, 0.5)
    assert list(answer.token_ids) == reference(family).spliced(inputs, answer.kept_indices)


def test_a_position_behind_the_text_of_its_clip(opened: Opened) -> None:
    """Of Qwen2.5-VL, whose frames may lie more seconds apart than a grid has rows."""
    pipeline = opened("qwen2_5_vl")
    video = Video(noise(6, (40, 50)), fps=0.05)
    (clip,) = pipeline.vision.read([video])
    rows = np.arange(pipeline.vision.count(clip, None))
    prompt = pipeline.prompts.place(
        pipeline.prompts.encode([user_turn(QUESTION, [clip])], pipeline.vision.spans(clip, None)),
        [pipeline.vision.placed(clip, rows, rows)],
    )
    assert prompt.positions.max() > prompt.next_position == prompt.positions[0, -1] + 1


# --- with others, and in conversations ------------------------------------------------------------------------------


@every_family
def test_images_and_clips_in_one_prompt(family: str, opened: Opened) -> None:
    pipeline = opened(family)
    image, clips = Image.fromarray(noise(1)[0]), [Video(noise(4), 2.0), Video(noise(3, (40, 50)), 1.0)]
    together = pipeline.ask(image, QUESTION, video=clips, **GREEDY)
    alone = [pipeline.ask(None, QUESTION, video=clip, max_tokens=1) for clip in clips]
    alone.insert(0, pipeline.ask(image, QUESTION, max_tokens=1))
    assert together.image_tokens == (KEPT,) * 3
    assert np.array_equal(together.kept_indices, np.concatenate([one.kept_indices for one in alone]))
    same(together, pipeline.ask([clips[0], image, clips[1]], QUESTION, **GREEDY))  # images come first
    batch = pipeline.ask_batch(
        [([image, *clips], QUESTION), (clips[0], QUESTION), (None, QUESTION)], **GREEDY
    )
    same(batch[0], together)
    same(batch[1], pipeline.ask(None, QUESTION, video=clips[0], **GREEDY))


@every_family
def test_a_conversation(family: str, opened: Opened) -> None:
    """Later turns find the cache as a new conversation would have it."""
    pipeline, frames = opened(family), noise(6, (40, 50))
    chat = pipeline.chat(None, video=frames, fps=0.2)
    first = chat.ask("what ?", max_tokens=4, ignore_eos=True)
    second = chat.ask(QUESTION, image=noise(1)[0], max_tokens=4, ignore_eos=True)
    third = chat.ask(QUESTION, video=frames[:3], fps=2.0, **GREEDY)
    assert (first.image_tokens, second.image_tokens) == ((KEPT,), (KEPT,) * 2)
    assert third.image_tokens == (KEPT,) * 3
    again = pipeline.chat(None, video=frames, fps=0.2)
    again.ask("what ?", max_tokens=4, ignore_eos=True)
    again.ask(QUESTION, image=noise(1)[0], max_tokens=4, ignore_eos=True)
    again._cached = ()
    same(again.ask(QUESTION, video=frames[:3], fps=2.0, **GREEDY), third)


@every_family
def test_a_ready_made_prompt(family: str, opened: Opened) -> None:
    pipeline, frames = opened(family), noise(4)
    prompt = pipeline.bundle.manifest.prompt
    asked = pipeline.ask(
        None, f"user {prompt.video_token} what ?", video=frames, raw_prompt=True, max_tokens=2
    )
    assert asked.image_tokens == (KEPT,)
    with refused("raw-prompt-placeholder", "0 clip placeholders", "1 clip"):
        pipeline.ask(None, "what ?", video=frames, raw_prompt=True)
    with refused("placeholder-order", prompt.video_token, prompt.image_token):
        text = f"{prompt.video_token} {prompt.image_token} what ?"
        pipeline.ask(Image.fromarray(frames[0]), text, video=frames, raw_prompt=True)


# --- the command line -----------------------------------------------------------------------------------------------


def test_a_file_and_its_frames_give_one_answer(
    opened: Opened, tmp_path: Path, command: Callable[..., Any]
) -> None:
    pytest.importorskip("av")
    path = write_clip(tmp_path / "a.mkv", noise(30), codec="ffv1", rate=10)
    bundle = str(opened(ONEVISION).bundle.path)
    frames = [noise(30)[i] for i in (0, 7, 15, 22)]
    wanted = opened(ONEVISION).ask(None, QUESTION, video=Video(path, frames=4), max_tokens=5)
    found = command(
        "ask", bundle, "--video", str(path), "--frames", "4", "--json", "--max-tokens", "5", QUESTION
    )
    assert found.code == 0, found.err
    assert json.loads(found.out)["token_ids"] == list(wanted.token_ids)
    assert json.loads(found.out)["image_tokens"] == [KEPT]
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{i}.png")
    lines = [{"video": "a.mkv", "question": QUESTION}, {"video": "frames", "question": QUESTION}]
    lines += [{"video": "none.mp4", "question": QUESTION}, {"video": 5, "question": QUESTION}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    batch = command("batch", bundle, str(tmp_path / "q.jsonl"), "--frames", "4", "--max-tokens", "5")
    first, second, third, fourth = map(json.loads, batch.out.splitlines())
    assert first["token_ids"] == list(wanted.token_ids)
    assert second["image_tokens"] == [KEPT]
    assert (third["code"], fourth["code"]) == ("clip-missing", "questions-invalid")
    chat = command(
        "ask", bundle, "--chat", "--json", "--max-tokens", "2", f"/video {tmp_path / 'frames'}", QUESTION
    )
    assert json.loads(chat.out)["image_tokens"] == [KEPT]


def test_what_is_refused(
    opened: Opened, demo_bundle: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    Image.fromarray(noise(1)[0]).save(tmp_path / "0.png")
    clip, bundle = str(tmp_path), str(opened(ONEVISION).bundle.path)
    for options, code, *values in (
        ((str(demo_bundle), "--video", clip), "clips-unsupported", "'llava'"),
        ((bundle, "--video", f"{clip}/none.mp4"), "clip-missing", "none.mp4"),
        ((bundle, "--fps", "2"), "clip-option-misplaced", "fps 2.0"),
        ((bundle, "--video", clip, "--fps", "0"), "fps-out-of-range", "0.0"),
        ((bundle, "--video", clip, "--show-kept", "a.png"), "show-kept-images", "1 clips"),
        ((bundle, "--image", f"{clip}/a.mp4"), "image-is-clip", "--video"),
    ):
        (tmp_path / "a.mp4").write_bytes(b"anything")
        told = command("ask", *options, QUESTION)
        (tmp_path / "a.mp4").unlink()
        assert_told(told.code, told.err, code, *values)


def test_a_bundle_without_clips_and_a_clip_beyond_the_context(
    folder: Callable[[str], Path], opened: Opened, tmp_path: Path
) -> None:
    images = Pipeline(export(plan_of(folder(ONEVISION), KEPT), tmp_path / "images").folder)
    with refused("bundle-without-clips", "--frames N"):
        images.ask(None, QUESTION, video=noise(2))
    pipeline = opened(ONEVISION).with_selector("none")
    encoded: list[int] = []
    pipeline.vision.see = lambda *given: encoded.append(1)  # type: ignore[assignment]
    video = [Video(noise(FRAMES)) for _ in range(19)]
    with refused("prompt-too-long", "1045 of them visual", "frames"):
        pipeline.ask(None, QUESTION, video=video)
    assert not encoded


# --- the export -----------------------------------------------------------------------------------------------------


def test_exports_that_are_refused(folder: Callable[[str], Path]) -> None:
    with refused("per-frame-without-frames", "--frames"):
        plan_of(folder(ONEVISION), KEPT, per="frame")
    with refused("clip-frames-out-of-range", "769", "768"):
        plan_of(folder(ONEVISION), KEPT, frames=769)
    with refused("clips-unsupported", "'llava'"):
        plan_of(CHECKPOINT, KEPT, frames=4)


@every_family
@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"video_processor_type": "FilmProcessor"}, "'FilmProcessor'"),
        ({"image_std": [0.1, 0.2, 0.3]}, "(0.1, 0.2, 0.3)"),
        ({"fps": -2.0, "min_frames": 4}, "fps"),
    ],
)
def test_another_video_processor_is_refused(
    family: str, changes: dict[str, Any], shown: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder(family), tmp_path / "tiny"))
    file = "video_preprocessor_config.json"
    images = "preprocessor_config.json"
    said = json.loads((copy / (file if (copy / file).is_file() else images)).read_text())
    (copy / file).write_text(json.dumps({**said, **changes}))
    with refused("video-processor-unsupported", shown, "--frames"):
        plan_of(copy, KEPT, frames=4)
    plan_of(copy, KEPT)


@every_family
def test_the_verification_looks_at_a_clip(family: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    from divprune_edge.export.verify import verify_bundle

    plan = plan_of(folder(family), KEPT, frames=3, per="frame")
    found = verify_bundle(plan, export(plan, tmp_path / "bundle").folder, lambda line: None)
    assert [check.name for check in found.checks if not check.passed] == []
    assert next(check for check in found.checks if check.name == "rows of an image").detail.startswith("5 ")
