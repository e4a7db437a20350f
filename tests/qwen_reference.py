"""transformers' own Qwen2.5-VL and Qwen3-VL as a reference: unpruned, and with rows of images taken out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spliced:
    """A prompt of which only some visual tokens are left.

    Attributes:
        rows: torch float32 [n, D]; embeddings.
        visual: torch bool [n]; which of them are visual tokens.
        beside: torch float32 [visual tokens, D] for each of the decoder's first layers that gets any.
        positions: int64 [3, n]; time, height and width.
        next_position: of what follows.
    """

    rows: Any
    visual: Any
    beside: Sequence[Any]
    positions: np.ndarray
    next_position: int


class QwenReference:
    """A checkpoint's model in float32, its tokenizer and its image processor; ``size`` are other bounds of that."""

    def __init__(self, folder: Path, **size: int) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        self._torch = torch
        self.model, report = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        assert not report["missing_keys"], "transformers would answer with random weights"
        self.model.eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", **({"size": size} if size else {})
        )
        self.place = self.model.config.image_token_id

    def rendered(self, turns: Sequence[tuple[str, int]]) -> list[int]:
        """Return the ids of a conversation of (text, number of images), user's and assistant's in turn."""
        messages = [
            {
                "role": "assistant" if at % 2 else "user",
                "content": [*[{"type": "image"}] * images, {"type": "text", "text": text}],
            }
            for at, (text, images) in enumerate(turns)
        ]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self._tokenizer(text)["input_ids"])

    def inputs(self, ids: Sequence[int], images: Sequence[Any]) -> dict[str, Any]:
        """Return what the model takes: ``ids`` have one placeholder for each image."""
        torch, found = self._torch, {}
        if images:
            found = dict(self._processor(images=list(images), return_tensors="pt"))
        counts = iter(self._counts(found))
        whole = [token for one in ids for token in ([one] * next(counts) if one == self.place else [one])]
        assert next(counts, None) is None, "an image without a placeholder"
        kinds = [[int(token == self.place) for token in whole]]
        if images:
            found["mm_token_type_ids"] = torch.tensor(kinds)
        return {"input_ids": torch.tensor([whole]), **found}

    def generated(
        self, inputs: dict[str, Any], steps: int, forbidden: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """Return greedy ids of transformers' own generate, and by how much each was the likeliest."""
        torch, ids = self._torch, inputs["input_ids"]
        made = self.model.generate(
            **inputs,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=list(forbidden),
            output_logits=True,
            return_dict_in_generate=True,
        )
        return self.greedy(torch.cat(made.logits), forbidden)

    def greedy(self, logits: Any, forbidden: Sequence[int]) -> tuple[list[int], list[float]]:
        """Return the likeliest ids of logits [steps, V], and by how much each was that."""
        logits = self._torch.as_tensor(logits).clone()
        logits[:, list(forbidden)] = -np.inf
        top = logits.topk(2, dim=-1)
        return top.indices[:, 0].tolist(), (top.values[:, 0] - top.values[:, 1]).tolist()

    def logits(self, inputs: dict[str, Any]) -> np.ndarray:
        """Return the last id's, float32 [V], of transformers' own forward."""
        with self._torch.inference_mode():
            found: np.ndarray = self.model(**inputs).logits[0, -1].numpy()
        return found

    def positions(self, inputs: dict[str, Any]) -> tuple[np.ndarray, int]:
        """Return int64 [3, n], and the next one, as transformers places an unpruned prompt."""
        ids = inputs["input_ids"]
        if "image_grid_thw" not in inputs:
            return np.tile(np.arange(ids.shape[1]), (3, 1)), ids.shape[1]
        places, ahead = self.model.model.get_rope_index(
            ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
        return places[:, 0].numpy(), ids.shape[1] + int(ahead)

    def spliced(self, inputs: dict[str, Any], kept: Sequence[Any], numbering: str) -> Spliced:
        """Leave of each image the visual tokens ``kept``, numbered anew without a gap or as they were."""
        torch, ids = self._torch, inputs["input_ids"][0]
        columns, image, begin = [], iter(zip(self._counts(inputs), kept, strict=True)), 0
        while begin < len(ids):
            if ids[begin] == self.place:
                count, indices = next(image)
                columns += [begin + int(i) for i in indices]
                begin += count
            else:
                columns.append(begin)
                begin += 1
        places, after = self.positions(inputs)
        places = places[:, columns]
        if numbering == "compact":
            places, after = np.tile(np.arange(len(columns)), (3, 1)), len(columns)
        with torch.inference_mode():
            rows = self.model.get_input_embeddings()(ids).clone()
            visual = ids == self.place
            beside = []
            if "pixel_values" in inputs:
                seen = self.model.get_image_features(
                    pixel_values=inputs["pixel_values"],
                    image_grid_thw=inputs["image_grid_thw"],
                    return_dict=True,
                )
                rows[visual] = torch.cat(list(seen.pooler_output))
                for feature in getattr(seen, "deepstack_features", None) or []:
                    whole = torch.zeros_like(rows)
                    whole[visual] = torch.cat(list(feature))
                    beside.append(whole[columns][visual[columns]])
        return Spliced(rows[columns], visual[columns], beside, places, after)

    def followed(self, prompt: Spliced, steps: int, forbidden: Sequence[int] = ()) -> np.ndarray:
        """Return float32 [steps, V] of greedy steps; each sees the whole sequence anew, so no cache is trusted."""
        torch, decoder = self._torch, self.model.model.language_model
        rows, visual = prompt.rows, prompt.visual
        found: list[np.ndarray] = []
        with torch.inference_mode():
            for step in range(steps):
                places = np.concatenate(
                    [prompt.positions, np.tile(prompt.next_position + np.arange(step), (3, 1))], 1
                )
                more = {}
                if prompt.beside:
                    more = {"visual_pos_masks": visual[None], "deepstack_visual_embeds": list(prompt.beside)}
                out = decoder(
                    inputs_embeds=rows[None],
                    position_ids=torch.from_numpy(places)[:, None],
                    use_cache=False,
                    **more,
                )
                found.append(self.model.lm_head(out.last_hidden_state[0, -1]).numpy())
                (token,), _ = self.greedy(found[-1][None], forbidden)
                rows = torch.cat([rows, self.model.get_input_embeddings()(torch.tensor([token]))])
                visual = torch.cat([visual, torch.zeros(1, dtype=torch.bool)])
        return np.stack(found)

    def _counts(self, inputs: dict[str, Any]) -> list[int]:
        """Return the visual tokens of each image."""
        merge = self.model.config.vision_config.spatial_merge_size
        return [int(grid.prod()) // merge**2 for grid in inputs.get("image_grid_thw", [])]
