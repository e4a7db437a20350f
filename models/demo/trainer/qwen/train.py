"""Train the demo checkpoint of Qwen3-VL's architecture: `python -m divprune_edge.models.demo.trainer.qwen.train`.

The phases of the other demo: pictures are drawn; the tower is taught patch by patch; then the whole model learns to
answer about images of several sizes, two images, and short clips. Pruning is not what it trains for: the language
model always gets every visual token.
"""

from __future__ import annotations

from pathlib import Path

from .. import workers
from ..command import begin
from ..schedule import TrainingStage
from .checkpoint import LARGEST, save_checkpoint
from .network import DemoQwen, VisionTower
from .phases import TaughtQwen, TaughtTower, teach_language, teach_vision

TRAINING_PICTURES = 24_000

VISION_STAGES = (
    TrainingStage("vision-part", steps=1800, batch=16, rate=0.02, patches=84, final_rate=0.3),
    TrainingStage("vision-full", steps=450, batch=12, rate=0.006),
)
LANGUAGE_STAGES = (
    TrainingStage("answers", steps=1000, batch=12, rate=0.01, final_rate=0.3, tower_share=0.0),
    TrainingStage("answers-all", steps=900, batch=12, rate=0.008, warmup=20, tower_share=0.5),
    TrainingStage("answers-last", steps=420, batch=12, rate=0.006, warmup=20, tower_share=0.5),
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    begun = begin(__package__, __doc__, arguments, count=TRAINING_PICTURES, size=LARGEST)
    if begun is None:
        return
    options, pictures = begun
    work: Path = options.work
    taught = TaughtTower(VisionTower())
    for stage in VISION_STAGES:
        teach_vision(taught, pictures, stage, work, options.seed)
    if options.phase == "vision":
        return
    qwen = DemoQwen()
    qwen.model.visual.load_state_dict(
        {n: v for n, v in taught.tower.state_dict().items() if "merger" not in n}, strict=False
    )
    model = TaughtQwen(qwen, taught.heads)
    for stage in LANGUAGE_STAGES:
        teach_language(model, pictures, stage, work, options.seed)
        if workers.rank() == 0:
            save_checkpoint(options.output, qwen.state_dict(), options.seed)
            print(f"{stage.name}: checkpoint in {options.output}", flush=True)


if __name__ == "__main__":
    main()
