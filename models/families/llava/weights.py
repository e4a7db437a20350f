"""How LLaVA checkpoints name their weights."""

from __future__ import annotations

from divprune_edge.models.families.llava.spec import PROJECTOR, TOWER
from divprune_edge.models.families.naming import CheckpointPart, Naming
from divprune_edge.models.towers import PROBE

NAMING = Naming(
    "LLaVA",
    encoder={
        TOWER: CheckpointPart(
            "vision tower",
            PROBE,
            (
                "model.vision_tower.vision_model.",
                "vision_tower.vision_model.",
                "model.vision_tower.",
                "vision_tower.",
            ),
        ),
        PROJECTOR: CheckpointPart(
            "projector", "linear_1.weight", ("model.multi_modal_projector.", "multi_modal_projector.")
        ),
    },
    decoder=("model.language_model.", "language_model.model.", "model.language_model.model."),
    heads=(
        "lm_head.weight",
        "language_model.lm_head.weight",
        "model.lm_head.weight",
        "model.language_model.lm_head.weight",
    ),
)
"""In the wild: before and since transformers 4.52, and since 5.0."""
