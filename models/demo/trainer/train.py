"""Train the demo checkpoint: `python -m divprune_edge.models.demo.trainer.train --output DIR`.

Three phases, each resumable from the work folder: pictures are drawn; the vision tower is taught
patch by patch; then the whole model learns to answer, first on part of the patches, at the end on
every visual token of every picture.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import workers
from .checkpoint import save_checkpoint
from .command import begin
from .language_phase import TaughtLlava, standardise_projector, teach_language
from .network import DemoLlava, VisionTower
from .schedule import TrainingStage
from .vision_phase import TaughtTower, patchify, teach_vision

TRAINING_PICTURES = 40_000

VISION_STAGES = (
    TrainingStage("vision-part", steps=2400, batch=16, rate=0.02, patches=208, final_rate=0.3),
    TrainingStage("vision-full", steps=450, batch=12, rate=0.006),
)
"""Counting is learned in the second stage: among 208 patches the share of background gives it away."""

LANGUAGE_STAGES = (
    TrainingStage(
        "answers-part", steps=800, batch=12, rate=0.01, patches=208, final_rate=0.3, tower_share=0.0
    ),
    TrainingStage(
        "answers-both",
        steps=220,
        batch=12,
        rate=0.006,
        patches=208,
        final_rate=0.4,
        warmup=20,
        tower_share=0.5,
    ),
    TrainingStage("answers-full", steps=170, batch=12, rate=0.003, warmup=20, tower_share=0.5),
)
"""The last stage sees all 576 visual tokens of every picture: pruning is not what it trains for."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    begun = begin(__package__, __doc__, arguments, count=TRAINING_PICTURES)
    if begun is None:
        return
    options, pictures = begun
    work: Path = options.work
    taught = TaughtTower(VisionTower())
    for stage in VISION_STAGES:
        teach_vision(taught, pictures, stage, work, options.seed)
    if options.phase == "vision":
        return
    llava = DemoLlava()
    llava.model.vision_tower = taught.tower
    with torch.no_grad():
        standardise_projector(llava, taught.tower(patchify(pictures.pixels[:32])))
    model = TaughtLlava(llava, taught.heads)
    for stage in LANGUAGE_STAGES:
        teach_language(model, pictures, stage, work, options.seed)
        if workers.rank() == 0:
            save_checkpoint(options.output, llava.state_dict(), options.seed)
            print(f"{stage.name}: checkpoint in {options.output}", flush=True)


if __name__ == "__main__":
    main()
