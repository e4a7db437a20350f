"""The two phases: the tower learns what patches show; then the whole model learns to answer about images and clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ...questions import Asker, Question
from ...render import PATCH, render
from ...scenes import Scene
from ...several import ask_clip, ask_pair, sample_clip
from ..data import Pictures
from ..language_phase import HEADS_WEIGHT, right_answers, scores_of
from ..packs import TRAINING_MIX, Batch, ask_for_training, build_batch, conversations
from ..schedule import TrainingRun, TrainingStage
from ..supervision import Heads, loss_of
from ..vision_phase import wanted_of
from ..workers import rank
from .checkpoint import FORM, LARGEST, MERGE, TEMPORAL
from .layout import Layout, Size, of_clip, of_images
from .network import DemoQwen, Grid, VisionTower, grid_of

FACTOR = PATCH * MERGE
SIDE = LARGEST // FACTOR

IMAGE_SIZES: tuple[Size, ...] = (
    *[(16, 16)] * 5,
    *[(12, 12), (12, 16), (16, 12), (14, 14), (8, 16), (16, 8)],
    *[(8, 8), (8, 8), (5, 5), (6, 6)],
)
"""Visual tokens of training images, as often as each is drawn; every second image or so is a large one."""
MORE_MOTION = 2
"""Times that the question about the motion's direction is asked again: it is learned last."""
PAIR_SIZES: tuple[Size, ...] = ((12, 12), (8, 12), (12, 8), (8, 8), (10, 10))
CLIP_SIZES: tuple[Size, ...] = ((8, 8), (8, 8), (10, 10), (12, 12))
KINDS, SHARES = ("image", "pair", "clip"), (0.6, 0.12, 0.28)
IMAGE_MIX = TRAINING_MIX | {"where": 3, "at": 2, "relation": 8, "bigger": 4, "digits": 3}
"""Places are learned last, as they are not in the order of tokens here: what is asked for more often than elsewhere."""
PAIR_MIX = (
    *("color", "shape", "count", "exist", "where", "at") * 2,
    "bigger",
    "relation",
    "digits",
    "digits",
)


class TaughtTower(nn.Module):
    """The vision tower with the heads that teach it."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower
        self.heads = Heads(tower.pos_embed.embedding_dim)


class TaughtQwen(nn.Module):
    """The model with the vision heads it keeps as a second teacher."""

    def __init__(self, qwen: DemoQwen, heads: Heads) -> None:
        super().__init__()
        self.qwen, self.heads = qwen, heads


def patchify(frames: Sequence[np.ndarray]) -> Tensor:
    """A patch's frames, uint8 [batch, H, W, 3] each, to normalised float32 [batch, n, 96], block by block."""
    x = torch.from_numpy(np.stack(frames)).float() / 127.5 - 1.0
    _, batch, height, width, _ = x.shape
    x = x.view(TEMPORAL, batch, height // FACTOR, MERGE, PATCH, width // FACTOR, MERGE, PATCH, 3)
    x = x.permute(1, 2, 5, 3, 6, 8, 0, 4, 7)
    return x.reshape(batch, height * width // PATCH**2, -1)


def resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 [batch, H, W, 3] at so many visual tokens."""
    height, width = (side * FACTOR for side in size)
    if pixels.shape[1:3] == (height, width):
        return np.array(pixels)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in pixels]
    )


def owners_at(owners: np.ndarray, size: Size) -> Tensor:
    """Owners [batch, patches] of the largest square image to those of a size, block by block: each patch's middle."""
    side = LARGEST // PATCH
    down, across = (side_ * MERGE for side_ in size)
    axes = grid_of(*size, side).axes.numpy()
    rows = (axes[:, 0] * 2 + 1) * side // (2 * down)
    columns = (axes[:, 1] * 2 + 1) * side // (2 * across)
    return torch.from_numpy(owners[:, rows * side + columns]).long()


def choose_blocks(owners: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Patches int64 [batch, 4 count] of so many visual tokens: those that show something first, then any."""
    blocks = (owners > 0).view(len(owners), -1, MERGE**2).any(-1)
    order = torch.rand(blocks.shape, generator=generator) + 2.0 * blocks
    chosen = order.topk(count, dim=1).indices.sort(1).values
    return (chosen[..., None] * MERGE**2 + torch.arange(MERGE**2)).flatten(1)


def grid(size: Size, tower: VisionTower) -> Grid:
    """The grid of a size for this tower."""
    return grid_of(*size, tower.places)


def drawn(run: TrainingRun, sizes: Sequence[Size]) -> Size:
    """The step's size, the same in every process."""
    return sizes[int(np.random.default_rng((run.seed, 1, run.step)).integers(len(sizes)))]


def teach_vision(
    model: TaughtTower, pictures: Pictures, stage: TrainingStage, folder: Path, seed: int
) -> None:
    """Run one stage of direct supervision; `stage.patches` are visual tokens here."""
    run = TrainingRun(stage, model, folder, seed)
    for _, generator in run.steps():
        rows, size = run.rows(len(pictures)), (SIDE, SIDE) if stage.patches else drawn(run, IMAGE_SIZES)
        pixels = resized(pictures.pixels[rows], size)
        patches, owners = patchify([pixels] * TEMPORAL), owners_at(pictures.owners[rows], size)
        index = None
        if stage.patches:
            index = choose_blocks(owners, stage.patches, generator)
            owners = owners.gather(1, index)
            patches = patches.gather(1, index[..., None].expand(-1, -1, patches.shape[-1]))
        features = model.tower.look(patches, grid(size, model.tower), index)[0]
        run.descend(*loss_of(model.heads(features), wanted_of(pictures, rows, owners)))


def answer_logits(
    model: DemoQwen, layout: Layout, features: Sequence[Sequence[Tensor]], batch: Batch
) -> Tensor:
    """Logits [answer tokens, vocabulary]; `features` are what the tower saw of each grid of the layout."""
    language = model.model.language_model
    merged = [model.model.visual.merge(of_grid) for of_grid in features]
    visual = list(zip(*merged, strict=True))
    text = language.embed_tokens(batch.ids)
    x = torch.cat([layout.embed(language.embed_tokens, visual[0]), text], 1)
    before, at = layout.positions()
    positions = torch.cat(
        [before.expand(len(text), -1, -1), (at + batch.offsets)[..., None].expand(-1, -1, 3)], 1
    )
    prefix = len(before)
    beside = [layout.beside(values) for values in visual[1:]]
    states = language(x, positions, prefix, batch.mask(prefix), beside)
    return model.lm_head(states[batch.rows, batch.columns])


class Media:
    """One step's images or clips, drawn: layout, patches of each grid, and conversations about them."""

    def __init__(self, run: TrainingRun, pictures: Pictures, rng: np.random.Generator) -> None:
        rows = run.rows(len(pictures))
        kind = np.random.default_rng((run.seed, 2, run.step)).choice(KINDS, p=SHARES)
        self.wanted: dict[str, Tensor] | None = None
        if kind == "image":
            self._images(run, pictures, rows, rng)
        elif kind == "pair":
            self._pairs(run, pictures, rows, rng)
        else:
            self._clips(run, [pictures.scene(int(row)) for row in rows], rng)

    def _images(
        self, run: TrainingRun, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator
    ) -> None:
        size = drawn(run, IMAGE_SIZES)
        self.layout = of_images([size])
        self.patches = [patchify([resized(pictures.pixels[rows], size)] * TEMPORAL)]
        self.wanted = wanted_of(pictures, rows, owners_at(pictures.owners[rows], size))
        self.packs = ask_for_training([pictures.scene(int(row)) for row in rows], rng, IMAGE_MIX)

    def _pairs(
        self, run: TrainingRun, pictures: Pictures, rows: np.ndarray, rng: np.random.Generator
    ) -> None:
        stream = np.random.default_rng((run.seed, 3, run.step))
        sizes = [PAIR_SIZES[i] for i in stream.integers(len(PAIR_SIZES), size=2)]
        others = (rows + 1 + stream.integers(len(pictures) - 1)) % len(pictures)
        self.layout = of_images(sizes)
        self.patches = [
            patchify([resized(pictures.pixels[which], size)] * TEMPORAL)
            for which, size in zip((rows, others), sizes, strict=True)
        ]
        asker = Asker(rng)
        self.packs = []
        for first, second in zip(rows, others, strict=True):
            scenes = pictures.scene(int(first)), pictures.scene(int(second))
            self.packs.append(conversations(ask_pair(scenes, asker, rng, PAIR_MIX), rng))

    def _clips(self, run: TrainingRun, scenes: Sequence[Scene], rng: np.random.Generator) -> None:
        stream = np.random.default_rng((run.seed, 4, run.step))
        size = CLIP_SIZES[stream.integers(len(CLIP_SIZES))]
        pairs = int(stream.integers(2, 4))
        apart = float(stream.uniform(0.1, 1.0))
        times = [(2 * i + 0.5) * apart for i in range(pairs)]
        self.layout = of_clip(size, times)
        asker, frames = Asker(rng), []
        self.packs = []
        for scene in scenes:
            clip = sample_clip(scene, rng)
            drawn_ = clip.frames(TEMPORAL * pairs) if clip else [scene] * TEMPORAL * pairs
            frames.append(np.stack([_drawn(one, size) for one in drawn_]))
            asked = ask_clip(clip, asker, rng) if clip else _still(scene, asker)
            asked += [question for question in asked if question.type == "motion"] * MORE_MOTION
            self.packs.append(conversations(asked, rng))
        clips = np.stack(frames)
        self.patches = [patchify([clips[:, TEMPORAL * i + j] for j in range(TEMPORAL)]) for i in range(pairs)]


def _drawn(scene: Scene, size: Size) -> np.ndarray:
    image: np.ndarray = resized(render(scene, max(size) * FACTOR)[None], size)[0]
    return image


def _still(scene: Scene, asker: Asker) -> list[Question]:
    asked = (asker.ask(scene, kind) for kind in TRAINING_MIX if kind != "size")
    return [question for question in asked if question is not None][:6]


def teach_language(
    model: TaughtQwen, pictures: Pictures, stage: TrainingStage, folder: Path, seed: int
) -> None:
    """Run one stage: answers are the goal, what the patches know is kept alive beside it.

    With `tower_share` 0 the tower is frozen, its mergers learn.
    """
    run, tower = TrainingRun(stage, model, folder, seed), model.qwen.model.visual
    for step, _ in run.steps():
        rng = np.random.default_rng((seed, step, rank()))
        media = Media(run, pictures, rng)
        batch = build_batch(media.packs, rng, FORM)
        taught = torch.zeros(())
        with torch.set_grad_enabled(stage.tower_share > 0):
            features = [
                tower.look(patches, grid(size, tower))
                for patches, size in zip(media.patches, media.layout.grids, strict=True)
            ]
            if media.wanted is not None:
                taught, _ = loss_of(model.heads(features[0][0]), media.wanted)
        logits = answer_logits(model.qwen, media.layout, features, batch)
        scores = scores_of(right_answers(logits.detach(), batch), batch)
        run.descend(functional.cross_entropy(logits, batch.labels) + HEADS_WEIGHT * taught, scores)
