"""Checkpoints of the families that look at clips, and transformers' own models of them, asked about clips."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import SIGLIP, VIDEO_TEMPLATE, make_checkpoint, write_json
from PIL import Image
from qwen_checkpoints import QWEN, make_qwen_checkpoint
from qwen_reference import QwenReference, Spliced
from video_reference import processed

from divprune_edge.manifest import Manifest
from divprune_edge.processing.patches import clip_bounds, fitted_size

torch = pytest.importorskip("torch")

ONEVISION = "llava_onevision"
FAMILIES = (ONEVISION, *QWEN)
QUESTION = "what is in the picture ?"
STEPS = 16
ROOM = {"max_position_embeddings": 1024}


def make_clip_checkpoint(folder: Path, family: str, **options: Any) -> Path:
    """Write a checkpoint whose processors have bounds that small clips meet; ``options`` are of Qwen-VL's."""
    if family != ONEVISION:
        options["text"] = {**options.get("text", {}), **ROOM}
        made, whole = make_qwen_checkpoint(folder, family=family, **options), family == "qwen3_vl"
        settings = json.loads((made / "preprocessor_config.json").read_text())
        token = (settings["patch_size"] * settings["merge_size"]) ** 2
        del settings["image_processor_type"]
        settings["size"] = {"shortest_edge": 12 * token, "longest_edge": (300 if whole else 40) * token}
        settings["video_processor_type"] = f"Qwen{'3' if whole else '2'}VLVideoProcessor"
        write_json(made / "video_preprocessor_config.json", settings)
        return made
    grids = {"image_grid_pinpoints": [[35, 70], [70, 35], [70, 70]]}
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
        template=VIDEO_TEMPLATE,
    )


class ClipReference:
    """transformers' model of a family, asked about a clip whose frames Pillow has resized.

    It gets them in one of the sizes where ``manifest`` has any, and does not resize them then.
    """

    def __init__(self, folder: Path, family: str, manifest: Manifest) -> None:
        self.family, self._preprocessing = family, manifest.preprocessing
        self._facts, self._prompt = manifest.preprocessing.clips, manifest.prompt
        patches = manifest.preprocessing.patches
        self._merge, self._depth = (patches.merge, patches.temporal) if patches is not None else (1, 1)
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
        images = [Image.fromarray(one) for one in frames]
        sized = bool(self._preprocessing.patches and self._preprocessing.patches.sizes)
        if sized:
            within = clip_bounds(self._preprocessing, len(frames))
            height, width = fitted_size(*frames[0].shape[:2], within)
            images = [one.resize((width, height), Image.Resampling(facts.resample)) for one in images]
        values, grid = processed(self._facts.sampling, images, facts, resize=not sized)
        found = {"pixel_values_videos": values, "video_grid_thw": torch.tensor([grid])}
        return (
            found
            if self.family == "qwen3_vl"
            else {**found, "second_per_grid_ts": torch.tensor([self._depth / fps])}
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
            video_processor=SimpleNamespace(merge_size=self._merge, temporal_patch_size=self._depth),
            _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(None, *given),
        )
        metadata = SimpleNamespace(fps=fps, frames_indices=list(range(len(frames))))
        text: str = kind.replace_video_token(itself, {**found, "video_metadata": [metadata]}, 0)
        return text
