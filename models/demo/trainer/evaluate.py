"""Measure a checkpoint: `python -m divprune_edge.models.demo.trainer.evaluate --checkpoint DIR --output DIR`.

Held-out accuracy per question type with two baselines, a dense grid of DivPrune budgets, and
random, uniform and DivPrune selection side by side; written as Markdown tables and JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...selectors.divprune import cosine_distances, max_min_picks
from ..held_out import GRID_PICTURES, HELD_OUT_PICTURES, HeldOut, chance, held_out
from ..questions import TYPES, Question
from ..render import GRID, IMAGE_SIZE, render
from .checkpoint import VISION
from .language_phase import answer_logits, right_answers
from .network import DemoLlava
from .packs import Batch, build_batch
from .tokenizer import EOS, IMAGE_MEAN
from .vision_phase import patchify

TOKENS = GRID * GRID
BUDGETS = (144, 58, 29)
DENSE_GRID = tuple(range(16, TOKENS + 1, 8))
SELECTORS = ("random", "uniform", "divprune")


@dataclass(frozen=True)
class Outcome:
    """Per question: answered right to the end, and ended exactly where the true answer ends."""

    questions: list[Question]
    right: list[bool]
    ended: list[bool]

    def of(self, kind: str) -> tuple[int, int]:
        """Right answers and questions of one type."""
        hits = [r for q, r in zip(self.questions, self.right, strict=True) if q.type == kind]
        return sum(hits), len(hits)

    def types(self) -> dict[str, float]:
        """Accuracy of every type that was asked for."""
        counts = {kind: self.of(kind) for kind in TYPES}
        return {kind: hits / total for kind, (hits, total) in counts.items() if total}

    @property
    def macro(self) -> float:
        """Mean over the types."""
        return float(np.mean(list(self.types().values())))

    @property
    def micro(self) -> float:
        """Share of right answers over all questions."""
        return sum(self.right) / len(self.right)

    @property
    def endings(self) -> float:
        """Share of answers that end where the true answer ends."""
        return sum(self.ended) / len(self.ended)


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % Wilson score interval of a share."""
    share = hits / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def load_model(checkpoint: Path) -> DemoLlava:
    """The checkpoint's weights in float32, read through the stock model."""
    from transformers import LlavaForConditionalGeneration

    stock = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    model = DemoLlava()
    missing, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    unread = (f"encoder.layers.{VISION['num_hidden_layers'] - 1}.", "post_layernorm")
    if missing or not all(any(part in name for part in unread) for name in unexpected):
        raise ValueError(f"{checkpoint} is not a demo checkpoint: missing {missing}, unexpected {unexpected}")
    model.eval()
    return model


def see(model: DemoLlava, pixels: np.ndarray, batch: int = 25) -> Tensor:
    """Vision features float32 [pictures, 576, hidden] of uint8 pixels."""
    tower = model.model.vision_tower
    return torch.cat([tower(patchify(pixels[i : i + batch])) for i in range(0, len(pixels), batch)])


def answer(
    model: DemoLlava, features: Tensor, questions: Sequence[Sequence[Question]], size: int = 8
) -> Outcome:
    """Ask every picture its questions; `features` [pictures, kept, hidden] sit at contiguous positions."""
    outcome = Outcome([], [], [])
    for start in range(0, len(questions), size):
        batch = build_batch([[[q] for q in asked] for asked in questions[start : start + size]])
        seen = features[start : start + size]
        budgets = torch.full((len(seen),), seen.shape[1])
        logits = answer_logits(model, seen, batch, budgets)
        outcome.questions.extend(batch.questions)
        outcome.right.extend(right_answers(logits, batch).tolist())
        outcome.ended.extend(_ended(logits, batch).tolist())
    return outcome


def _ended(logits: Tensor, batch: Batch) -> Tensor:
    """bool [questions]: the end is the most likely token after the true answer, and nowhere before."""
    wrong = ((logits.argmax(-1) == EOS) != (batch.labels == EOS)).long()
    return torch.zeros(len(batch.questions), dtype=torch.long).index_add_(0, batch.asked, wrong) == 0


def divprune_order(model: DemoLlava, features: Tensor) -> Tensor:
    """Max-min picks of every picture's projected tokens, int64 [pictures, 576]; a budget is a prefix."""
    valid = np.ones(TOKENS, bool)
    orders = []
    for seen in features:
        distances = cosine_distances(model.model.multi_modal_projector(seen).numpy())
        orders.append(torch.from_numpy(max_min_picks(distances, valid, TOKENS)))
    return torch.stack(orders)


def keep(features: Tensor, picks: Tensor) -> Tensor:
    """The picked tokens in their original order."""
    index = picks.sort(1).values
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))


def picker(name: str, order: Tensor) -> Callable[[int], Tensor]:
    """Budget to picks int64 [pictures, budget]."""
    count = len(order)
    if name == "divprune":
        return lambda budget: order[:, :budget]
    if name == "uniform":
        return lambda budget: ((torch.arange(budget) * 2 + 1) * TOKENS // (2 * budget)).expand(count, -1)
    ranks = torch.rand(count, TOKENS, generator=torch.Generator().manual_seed(0)).argsort(1)
    return lambda budget: ranks[:, :budget]


@torch.inference_mode()
def measure(
    model: DemoLlava, data: HeldOut, grid_pictures: int, grid: Sequence[int] = DENSE_GRID
) -> dict[str, object]:
    """All measurements as plain numbers, ready for JSON."""
    pixels = np.stack([render(scene) for scene in data.scenes])
    features = see(model, pixels)
    full = answer(model, features, data.questions)
    print(f"full tokens: macro {full.macro:.3f}", flush=True)
    grey = np.broadcast_to(
        np.array([round(255 * m) for m in IMAGE_MEAN], np.uint8), (1, IMAGE_SIZE, IMAGE_SIZE, 3)
    )
    blind = answer(model, see(model, grey).expand(len(features), -1, -1), data.questions)
    shuffled = answer(model, features.roll(1, 0), data.questions)
    types = {}
    for kind in full.types():
        hits, total = full.of(kind)
        asked = [q for q in full.questions if q.type == kind]
        types[kind] = {
            "questions": total,
            "accuracy": hits / total,
            "interval": wilson(hits, total),
            "chance": chance(asked),
            "no_image": blind.of(kind)[0] / total,
            "shuffled_image": shuffled.of(kind)[0] / total,
        }
    result: dict[str, object] = {
        "pictures": len(data.scenes),
        "questions": len(full.questions),
        "types": types,
        "macro": {
            "accuracy": full.macro,
            "chance": float(np.mean([t["chance"] for t in types.values()])),
            "no_image": blind.macro,
            "shuffled_image": shuffled.macro,
        },
        "endings": full.endings,
    }
    order = divprune_order(model, features)
    result["selectors"] = _compare_selectors(model, features, order, data)
    first = data.questions[:grid_pictures]
    result["grid"] = _dense_grid(model, features[:grid_pictures], order[:grid_pictures], first, grid)
    return result


def _compare_selectors(
    model: DemoLlava, features: Tensor, order: Tensor, data: HeldOut
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in SELECTORS:
        picks = picker(name, order)
        for budget in BUDGETS:
            outcome = answer(model, keep(features, picks(budget)), data.questions)
            interval = wilson(sum(outcome.right), len(outcome.right))
            rows.append(
                {"selector": name, "budget": budget, "macro": outcome.macro, "micro": outcome.micro}
                | {"interval": interval, "endings": outcome.endings, "types": outcome.types()}
            )
            print(f"{name} {budget}: macro {outcome.macro:.3f}", flush=True)
    return rows


def _dense_grid(
    model: DemoLlava,
    features: Tensor,
    order: Tensor,
    questions: Sequence[Sequence[Question]],
    grid: Sequence[int],
) -> list[dict[str, float]]:
    rows = []
    for budget in grid:
        outcome = answer(model, keep(features, order[:, :budget]), questions)
        rows.append(
            {"budget": budget, "micro": outcome.micro, "macro": outcome.macro, "endings": outcome.endings}
        )
        print(f"grid {budget}: {outcome.micro:.3f}, endings {outcome.endings:.3f}", flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=HELD_OUT_PICTURES)
    parser.add_argument("--grid-pictures", type=int, default=GRID_PICTURES)
    options = parser.parse_args(arguments)
    from .score_tables import tables

    result = measure(load_model(options.checkpoint), held_out(options.pictures), options.grid_pictures)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.output / "evaluation.md").write_text(tables(result), encoding="utf-8")
    print(tables(result))


if __name__ == "__main__":
    main()
