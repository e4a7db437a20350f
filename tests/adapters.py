"""LoRA adapters as peft writes them, and plans with one merged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.merged import with_adapter
from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.planning import plan_export


def make_adapter(checkpoint: Path, folder: Path, **lora: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """Write an adapter with peft; return its folder and the model's weights after peft's own merge."""
    peft = pytest.importorskip("peft")
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 16, **lora}))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name or parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload().state_dict()
    return folder, {name: weight.numpy() for name, weight in merged.items()}


def merged_plan(checkpoint: Path, adapter: Path, **options: Any) -> ExportPlan:
    merged = with_adapter(Checkpoint(checkpoint, checkpoint.name), adapter)
    asked = {"selector": "divprune", "keep": 9, "prune": None, "precision": "fp32", **options}
    return plan_export(merged, **asked)
