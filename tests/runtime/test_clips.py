"""Clips: what is answered about them is what transformers answers, unpruned and pruned; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import SIGLIP, TEMPLATE, make_checkpoint, write_json
from clips_made import noise, write_clip
from exporting import export, plan_of
from PIL import Image
from qwen_checkpoints import QWEN, make_qwen_checkpoint
from qwen_reference import QwenReference, Spliced
from raising import assert_told, refused
from video_reference import processed

from divprune_edge import Pipeline, Video
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.processing.prompt import user_turn
from divprune_edge.runtime.pipeline import Answer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ONEVISION = "llava_onevision"
FAMILIES = (ONEVISION, *QWEN)
FRAMES, KEPT, STEPS = 6, 9, 16
QUESTION = "what is in the picture ?"
GREEDY: dict[str, Any] = {"max_tokens": STEPS, "ignore_eos": True}
ROOM = {"max_position_embeddings": 1024}
every_family = pytest.mark.parametrize("family", FAMILIES)

Opened = Callable[..., Pipeline]


def make(folder: Path, family: str) -> Path:
    if family != ONEVISION:
        made = make_qwen_checkpoint(folder, family=family, text=ROOM)
        token, whole = 64, family == "qwen3_vl"
        settings = json.loads((made / "preprocessor_config.json").read_text())
        del settings["image_processor_type"]
        settings["size"] = {"shortest_edge": 12 * token, "longest_edge": (300 if whole else 40) * token}
        settings["video_processor_type"] = f"Qwen{'3' if whole else '2'}VLVideoProcessor"
        write_json(made / "video_preprocessor_config.json", settings)
        return made
    grids = {"image_grid_pinpoints": [[35, 70], [70, 35], [70, 70]]}
    video = "{% elif part['type'] == 'video' %}<pad>\n{% else %}"
    return make_checkpoint(
        folder,
        family=family,
        kind="qwen2",
        tower=SIGLIP,
        text=ROOM,
        llava={
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "video_token_id": 3,
            **grids,
        },
        processor=grids,
        template=TEMPLATE.replace("{% else %}", video, 1),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    return lambda family: made.setdefault(
        family, made.get(family) or make(tmp_path_factory.mktemp(family) / "tiny", family)
    )


@pytest.fixture(scope="module")
def opened(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    made: dict[Any, Pipeline] = {}

    def get(family: str, **options: Any) -> Pipeline:
        key = family, *options.items()
        if key not in made:
            plan = plan_of(folder(family), **{"keep": KEPT, "frames": FRAMES, **options})
            made[key] = Pipeline(export(plan, tmp_path_factory.mktemp("bundle") / "tiny").folder, threads=1)
        return made[key]

    return get


class Reference:
    """transformers' model of a family, asked about a clip whose frames Pillow has resized."""

    def __init__(self, folder: Path, family: str, pipeline: Pipeline) -> None:
        self.family, manifest = family, pipeline.bundle.manifest
        self._facts, self._prompt = manifest.preprocessing.clips, manifest.prompt
        self._stock = QwenReference(folder) if family in QWEN else None
        if self._stock is None:
            from transformers import AutoModelForImageTextToText, AutoTokenizer

            self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder)
        else:
            self.model, self._tokenizer = self._stock.model, self._stock._tokenizer

    def inputs(self, frames: list[np.ndarray], fps: float) -> dict[str, Any]:
        """Return what the model takes of a question about frames at that rate."""
        parts = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        token, found = self._prompt.video_token, self._clip(frames, fps)
        text = text.replace(token, self._expanded(found, frames, fps))
        ids = torch.tensor([self._tokenizer(text)["input_ids"]])
        if self._stock is not None:
            found["mm_token_type_ids"] = 2 * (ids == self._prompt.video_token_id).int()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **found}

    def generated(self, inputs: dict[str, Any]) -> list[int]:
        made = self.model.generate(
            **inputs,
            max_new_tokens=STEPS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=list(self._prompt.forbidden_ids),
        )
        ids: list[int] = made[0, inputs["input_ids"].shape[1] :].tolist()
        return ids

    def spliced(self, inputs: dict[str, Any], kept: np.ndarray) -> list[int]:
        """Return greedy ids where only some of the clip's tokens are among the embeddings."""
        ids = inputs["input_ids"][0]
        visual = ids == self._prompt.video_token_id
        stays = ~visual
        stays[torch.nonzero(visual)[:, 0][torch.tensor(kept)]] = True
        with torch.inference_mode():
            rows = self.model.get_input_embeddings()(ids).clone()
            seen = {
                name: value for name, value in inputs.items() if name.endswith(("videos", "video_grid_thw"))
            }
            features = self.model.get_video_features(**seen, return_dict=True)
            rows[visual] = torch.cat(list(features.pooler_output))
        if self._stock is None:
            return self._followed(rows[stays])
        beside = [
            torch.cat(list(one))[stays[visual]] for one in getattr(features, "deepstack_features", None) or []
        ]
        places, _ = self.model.model.get_rope_index(**inputs)
        places = places[:, 0, stays].numpy()
        prompt = Spliced(rows[stays], visual[stays], beside, places, int(places[0, -1]) + 1)
        forbidden = tuple(self._prompt.forbidden_ids)
        return self._stock.greedy(self._stock.followed(prompt, STEPS, forbidden), forbidden)[0]

    def _followed(self, rows: Any) -> list[int]:
        found: list[int] = []
        with torch.inference_mode():
            while len(found) < STEPS:
                state = self.model.model.language_model(inputs_embeds=rows[None]).last_hidden_state[0, -1]
                logits = self.model.lm_head(state)
                logits[list(self._prompt.forbidden_ids)] = -torch.inf
                found.append(int(logits.argmax()))
                rows = torch.cat([rows, self.model.get_input_embeddings()(torch.tensor(found[-1:]))])
        return found

    def _clip(self, frames: list[np.ndarray], fps: float) -> dict[str, Any]:
        assert self._facts is not None
        facts = self._facts.frame
        if self.family == ONEVISION:
            from transformers import CLIPImageProcessorPil

            side = self.model.config.vision_config.image_size
            process = CLIPImageProcessorPil(
                size={"height": side, "width": side},
                do_center_crop=False,
                image_mean=facts.mean,
                image_std=facts.std,
            )
            return {"pixel_values_videos": process(frames, return_tensors="pt")["pixel_values"][None]}
        values, grid = processed(self._facts.sampling, [Image.fromarray(one) for one in frames], facts)
        found = {"pixel_values_videos": values, "video_grid_thw": torch.tensor([grid])}
        return (
            found if self.family == "qwen3_vl" else {**found, "second_per_grid_ts": torch.tensor([2 / fps])}
        )

    def _expanded(self, found: dict[str, Any], frames: list[np.ndarray], fps: float) -> str:
        """Return what transformers' processors put in a placeholder's place."""
        from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
        from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
        from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

        kind = {ONEVISION: LlavaOnevisionProcessor, "qwen3_vl": Qwen3VLProcessor}.get(
            self.family, Qwen2_5_VLProcessor
        )
        itself = SimpleNamespace(
            video_token=self._prompt.video_token,
            vision_start_token="<|vision_start|>",
            vision_end_token="<|vision_end|>",
            num_image_tokens=25,
            video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
            _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(None, *given),
        )
        metadata = SimpleNamespace(fps=fps, frames_indices=list(range(len(frames))))
        text: str = kind.replace_video_token(itself, {**found, "video_metadata": [metadata]}, 0)
        return text


@pytest.fixture(scope="module")
def reference(folder: Callable[[str], Path], opened: Opened) -> Callable[[str], Reference]:
    torch.set_num_threads(1)
    made: dict[str, Reference] = {}
    return lambda family: made.setdefault(
        family, made.get(family) or Reference(folder(family), family, opened(family))
    )


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
    reference: Callable[[str], Reference],
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
    family: str, per: str, opened: Opened, reference: Callable[[str], Reference]
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
    (clip,) = pipeline._vision.read([video])
    rows = np.arange(pipeline._vision.count(clip, None))
    prompt = pipeline._placed(
        pipeline._prompt.encode([user_turn(QUESTION, [clip])], pipeline._vision.spans(clip, None)),
        [pipeline._vision.placed(clip, rows, rows)],
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
    assert same(together, pipeline.ask([clips[0], image, clips[1]], QUESTION, **GREEDY))  # images come first
    batch = pipeline.ask_batch(
        [([image, *clips], QUESTION), (clips[0], QUESTION), (None, QUESTION)], **GREEDY
    )
    assert same(batch[0], together)
    assert same(batch[1], pipeline.ask(None, QUESTION, video=clips[0], **GREEDY))


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
    assert same(again.ask(QUESTION, video=frames[:3], fps=2.0, **GREEDY), third)


def same(first: Answer, second: Answer) -> bool:
    return first.token_ids == second.token_ids and np.array_equal(first.kept_indices, second.kept_indices)


@every_family
def test_a_ready_made_prompt(family: str, opened: Opened) -> None:
    pipeline, frames = opened(family), noise(4)
    prompt = pipeline.bundle.manifest.prompt
    asked = pipeline.ask(
        None, f"user {prompt.video_token} what ?", video=frames, raw_prompt=True, max_tokens=2
    )
    assert asked.image_tokens == (KEPT,)
    with refused("raw-prompt-placeholder", "0 clip placeholders", "1 clips"):
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
    pipeline._vision.see = lambda *given: encoded.append(1)  # type: ignore[assignment]
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
    with refused("frames-with-sizes", "--frames 4", "--resolution"):
        plan_of(folder("qwen3_vl"), KEPT, frames=4, resolution="48x48")
    with refused("clips-unsupported", "'llava'"):
        plan_of(CHECKPOINT, KEPT, frames=4)


@every_family
def test_the_verification_looks_at_a_clip(family: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    from divprune_edge.export.verify import verify_bundle

    plan = plan_of(folder(family), KEPT, frames=3, per="frame")
    found = verify_bundle(plan, export(plan, tmp_path / "bundle").folder, lambda line: None)
    assert [check.name for check in found.checks if not check.passed] == []
    assert next(check for check in found.checks if check.name == "rows of an image").detail.startswith("5 ")
