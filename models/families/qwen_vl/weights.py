"""How checkpoints of Qwen2.5-VL and Qwen3-VL name their weights."""

from __future__ import annotations

from divprune_edge.models.families.naming import CheckpointPart, Naming
from divprune_edge.models.families.qwen_vl.spec import TOWER

NAMING = Naming(
    "Qwen-VL",
    encoder={TOWER: CheckpointPart("vision tower", "patch_embed.proj.weight", ("model.visual.", "visual."))},
    decoder=("model.language_model.", "language_model.model.", "model."),
    heads=("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"),
)
"""In the wild: since transformers 4.52, and before, with the decoder beside the tower."""
