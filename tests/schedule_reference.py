"""Pruning inside the language model as one would write it in PyTorch: transformers' layers, tokens taken out between.

Written for the tests, from the papers and without a look at ``models.schedules``: what it keeps, and what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Cut = tuple[int, int]
"""Before which layer, and how many visual tokens of each image stay."""


@dataclass
class Passed:
    """What a layer got and gave."""

    before: Any
    after: Any
    attention: Any


class EagerDecoder:
    """The decoder of a checkpoint in float32, with attention written out."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(1)
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.decoder = self.model.model.language_model
        self.depth = len(self.decoder.layers)

    def embed(self, ids: Sequence[int], table: np.ndarray) -> torch.Tensor:
        """Rows of ids of the token table; what is stacked behind a token is added after the first layers."""
        embedding = self.model.get_input_embeddings().weight.detach()
        embedding = torch.nn.functional.pad(embedding, (0, table.shape[1] - embedding.shape[1]))
        whole = torch.cat([embedding, torch.tensor(table, dtype=torch.float32)])
        first, *self._stacked = whole[torch.tensor(list(ids))].split(
            self.model.config.text_config.hidden_size, dim=1
        )
        return first

    def layer(self, index: int, x: Any, positions: Any) -> Passed:
        layer, n = self.decoder.layers[index], x.shape[1]
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        seen: dict[str, Any] = {}
        hook = layer.self_attn.register_forward_hook(lambda m, i, out: seen.update(attention=out[1]))
        after = layer(
            x,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=self.decoder.rotary_emb(x, positions),
        )
        hook.remove()
        return Passed(x, after if isinstance(after, torch.Tensor) else after[0], seen["attention"])

    @torch.no_grad()
    def run(
        self,
        rows: Any,
        images: Sequence[np.ndarray],
        cuts: Sequence[Cut],
        method: str,
        renumber: bool,
        kept: Sequence[np.ndarray] | None = None,
        positions: np.ndarray | None = None,
    ) -> tuple[Any, list[np.ndarray]]:
        """Return the logits of the last row, and which rows of the prompt each cut left of its images.

        With ``kept``, what a first run kept, nothing is judged: further rows behind the prompt only follow.
        """
        x = rows[None]
        alive, images = np.arange(len(rows)), [np.asarray(image) for image in images]
        places = np.arange(len(rows)) if positions is None else positions
        chosen: list[np.ndarray] = []
        passed: list[Passed] = []
        axes = 1 if places.ndim == 1 else len(places)
        for i in range(self.depth):
            for number, (before, keep) in enumerate(cuts):
                if before != i:
                    continue
                if kept is None:
                    images = [
                        image[self.judge(method, i, x, passed, np.searchsorted(alive, image), keep, places)]
                        for image in images
                    ]
                    chosen.append(np.concatenate(images))
                else:
                    chosen.append(kept[number])
                visual = np.concatenate([*self._all(images if kept is None else [kept[number]])])
                gone = np.setdiff1d(self._visual, visual)
                stay = np.flatnonzero(~np.isin(alive, gone))
                alive, x = alive[stay], x[:, stay]
                places = np.arange(len(alive)) if renumber else places[..., stay]
                if renumber and axes > 1:
                    places = np.tile(places, (axes, 1))
            passed.append(self.layer(i, x, self._tensor(places)))
            x = passed[-1].after
            if i < len(self._stacked):
                x = x + torch.nn.functional.pad(
                    self._stacked[i], (0, 0, 0, x.shape[1] - len(self._stacked[i]))
                )
        return self.model.lm_head(self.decoder.norm(x[0, -1])), chosen

    def greedy(
        self,
        rows: Any,
        images: Sequence[np.ndarray],
        cuts: Sequence[Cut],
        method: str,
        renumber: bool,
        steps: int,
        forbidden: Sequence[int] = (),
        positions: np.ndarray | None = None,
        next_position: int | None = None,
    ) -> tuple[list[int], list[float], list[np.ndarray]]:
        """Return ids, how much larger than the second each logit was, and what was kept."""
        self._visual = np.concatenate([*images]) if images else np.empty(0, np.int64)
        places = positions
        logits, kept = self.run(rows, images, cuts, method, renumber, positions=places)
        tokens, margins = [], []
        for step in range(steps):
            logits = logits.clone()
            logits[list(forbidden)] = float("-inf")
            top = torch.topk(logits, 2)
            tokens.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            rows = torch.cat([rows, self.model.get_input_embeddings()(top.indices[:1]).detach()])
            if places is not None:
                assert next_position is not None
                new = np.full((*places.shape[:-1], 1), next_position + step)
                places = np.concatenate([places, new], axis=-1)
            logits, _ = self.run(rows, images, cuts, method, renumber, kept, places)
        return tokens, margins, kept

    def judge(
        self, method: str, layer: int, x: Any, passed: list[Passed], image: np.ndarray, keep: int, places: Any
    ) -> np.ndarray:
        """Return which of an image's tokens, at rows ``image`` of what is left, stay."""
        if len(image) <= keep:
            return np.arange(len(image))
        if method in ("todre-2", "uniform", "random"):
            return np.array([i * len(image) // keep for i in range(keep)], np.int64)
        before = passed[-1]
        if method == "fastv":
            score = before.attention[0, :, -1, image].mean(0)
        elif method == "pyramiddrop":
            score = self.layer(layer, x, self._tensor(places)).attention[0, :, -1, image].mean(0)
        elif method == "v2drop":
            score = (before.after - before.before)[0, image].norm(dim=-1)
        else:
            raise NotImplementedError(method)
        return np.sort(torch.topk(score, keep).indices.numpy())

    @staticmethod
    def _tensor(places: np.ndarray) -> Any:
        return torch.tensor(places)[None] if places.ndim == 1 else torch.tensor(places)[:, None]

    @staticmethod
    def _all(parts: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [*parts, np.empty(0, np.int64)]
