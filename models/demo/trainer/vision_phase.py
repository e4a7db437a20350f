"""Phase 1: the vision tower learns, patch by patch, what its pictures show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..render import GRID, PATCH
from .data import Pictures
from .network import VisionTower
from .schedule import TrainingRun, TrainingStage
from .supervision import Heads, loss_of, targets
from .tokenizer import IMAGE_MEAN, IMAGE_STD


class TaughtTower(nn.Module):
    """The vision tower with the heads that teach it."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.heads = Heads(tower.embeddings.position_embedding.embedding_dim)


def patchify(pixels: np.ndarray) -> Tensor:
    """uint8 [batch, 96, 96, 3] to normalised float32 [batch, 576, 48], ordered as the patch kernel is."""
    x = torch.from_numpy(np.array(pixels)).float()
    x = (x / 255.0 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    x = x.view(len(x), GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(len(x), GRID * GRID, 3 * PATCH * PATCH)


def choose_patches(owners: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Patch indices int64 [batch, count]: what shows something first, then background at random."""
    rank = torch.rand(owners.shape, generator=generator) + 2.0 * (owners > 0)
    return rank.topk(count, dim=1).indices.sort(1).values


def draw_patches(
    pictures: Pictures, rows: np.ndarray, count: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """Patches of the pictures `rows`, their indices (None: all), and what they are to know."""
    patches = patchify(pictures.pixels[rows])
    owners = torch.from_numpy(pictures.owners[rows]).long()
    index = None
    if count is not None:
        index = choose_patches(owners, count, generator)
        owners = owners.gather(1, index)
        patches = patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))
    return patches, index, wanted_of(pictures, rows, owners)


def wanted_of(pictures: Pictures, rows: np.ndarray, owners: Tensor) -> dict[str, Tensor]:
    """What patches of the pictures `rows` with these owners, int64 [batch, n], are to know."""
    things = torch.from_numpy(pictures.things[rows])
    return targets(owners, things, torch.from_numpy(pictures.digits[rows]).long())


def teach_vision(
    model: TaughtTower, pictures: Pictures, stage: TrainingStage, folder: Path, seed: int
) -> None:
    """Run one stage of direct supervision."""
    run = TrainingRun(stage, model, folder, seed)
    for _, generator in run.steps():
        rows = run.rows(len(pictures))
        patches, index, wanted = draw_patches(pictures, rows, stage.patches, generator)
        run.descend(*loss_of(model.heads(model.tower(patches, index)), wanted))
