"""Phase 2: projector and language model learn to answer; at the end the tower may follow."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .data import Pictures
from .network import DemoLlava
from .packs import HEAD, Batch, ask_for_training, build_batch, positions
from .schedule import TrainingRun, TrainingStage
from .supervision import Heads, loss_of
from .vision_phase import choose_patches, draw_patches
from .workers import rank

HEADS_WEIGHT = 0.3


def answer_logits(model: DemoLlava, features: Tensor, batch: Batch, budgets: Tensor) -> Tensor:
    """Logits [answer tokens, vocabulary] of a batch, given vision features [batch, n, hidden]."""
    language = model.model.language_model
    visual = model.model.multi_modal_projector(features)
    head = language.embed_tokens(torch.tensor(HEAD)).expand(len(visual), -1, -1)
    x = torch.cat([head, visual, language.embed_tokens(batch.ids)], 1)
    prefix = len(HEAD) + visual.shape[1]
    states = language(x, positions(visual.shape[1], budgets, batch), prefix, batch.mask(prefix))
    return model.lm_head(states[batch.rows, batch.columns])


def right_answers(logits: Tensor, batch: Batch) -> Tensor:
    """bool [questions]: every token of the answer and its end are the most likely ones.

    Given the true beginning, that is exactly when greedy decoding gives the true answer and stops.
    """
    wrong = (logits.argmax(-1) != batch.labels).long()
    return torch.zeros(len(batch.questions), dtype=torch.long).index_add_(0, batch.asked, wrong) == 0


def draw_budgets(count: int, full: int, generator: torch.Generator) -> Tensor:
    """Half the packs at their true positions, half squeezed to 8..576, small budgets as often as big ones."""
    low, high = torch.tensor(8.0).log(), torch.tensor(577.0).log()
    spread = torch.rand(count, generator=generator)
    squeezed = torch.where(
        torch.rand(count, generator=generator) < 0.5,
        (low + spread * (high - low)).exp(),
        8 + spread * 569,
    ).long()
    return torch.where(torch.rand(count, generator=generator) < 0.5, torch.tensor(full), squeezed)


class TaughtLlava(nn.Module):
    """The model with the vision heads it keeps as a second teacher."""

    def __init__(self, llava: DemoLlava, heads: Heads) -> None:
        super().__init__()
        self.llava, self.heads = llava, heads


def standardise_projector(model: DemoLlava, features: Tensor) -> None:
    """Start the projector as if its input had zero mean and unit spread per channel."""
    flat = features.flatten(0, 1)
    mean, spread = flat.mean(0), flat.std(0) + 1e-3
    first = model.model.multi_modal_projector.linear_1
    with torch.no_grad():
        first.weight /= spread
        first.bias.copy_(-first.weight @ mean)


def teach_language(
    model: TaughtLlava, pictures: Pictures, stage: TrainingStage, folder: Path, seed: int
) -> None:
    """Run one stage: answers are the goal, what the patches know is kept alive beside it.

    The tower always sees the whole picture; `stage.patches` is what the language model gets of it.
    With `tower_share` 0 the tower is frozen.
    """
    run = TrainingRun(stage, model, folder, seed)
    tower = model.llava.model.vision_tower
    for step, generator in run.steps():
        rng = np.random.default_rng((seed, step, rank()))
        rows = run.rows(len(pictures))
        batch = build_batch(ask_for_training([pictures.scene(int(row)) for row in rows], rng), rng)
        patches, _, wanted = draw_patches(pictures, rows, None, generator)
        with torch.set_grad_enabled(stage.tower_share > 0):
            features = tower(patches)
            taught, _ = loss_of(model.heads(features), wanted)
        if stage.patches is not None:
            owners = torch.from_numpy(pictures.owners[rows]).long()
            index = choose_patches(owners, stage.patches, generator)
            features = features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))
        budgets = draw_budgets(len(rows), features.shape[1], generator)
        logits = answer_logits(model.llava, features, batch, budgets)
        scores = scores_of(right_answers(logits.detach(), batch), batch)
        loss = functional.cross_entropy(logits, batch.labels) + HEADS_WEIGHT * taught
        run.descend(loss, {"heads": float(taught.detach()), **scores})


def scores_of(right: Tensor, batch: Batch) -> dict[str, float]:
    """Share of right answers per question type."""
    by_type: dict[str, list[bool]] = defaultdict(list)
    for question, is_right in zip(batch.questions, right.tolist(), strict=True):
        by_type[question.type].append(is_right)
    return {kind: sum(values) / len(values) for kind, values in sorted(by_type.items())}
