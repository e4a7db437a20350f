"""What the manifest says that a step costs, counted against the weights of the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import make_checkpoint
from exporting import export, plan_of

from divprune_edge.models.cost import cost_of, decoder_parts


@pytest.mark.parametrize(("tied", "precision"), [(False, "fp32"), (True, "fp32"), (False, "fp16")])
def test_the_manifest_says_what_a_step_costs(tmp_path: Path, tied: bool, precision: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint", tied=tied)
    plan = plan_of(folder, precision=precision)
    with plan.checkpoint:
        bundle = export(plan, tmp_path / "bundle")
    manifest = bundle.manifest
    cost = manifest.language_model.cost
    assert cost is not None
    parts = decoder_parts(plan.spec.decoder, plan.vocabulary)
    assert (cost.token_flops, cost.pair_flops, cost.logits_flops) == (parts.token, parts.pair, parts.logits)
    whole = cost_of(plan.spec, 9, 11, plan.vocabulary)
    assert manifest.vision_encoder.flops == whole.vision + whole.projector
    assert parts.of(20) == whole.language
    stored = sum(info.size for name, info in manifest.files.items() if name.startswith("language_model."))
    table = plan.vocabulary * plan.spec.width * (2 if precision == "fp16" else 4)
    assert cost.weight_bytes == stored - (0 if tied else table)


@pytest.mark.parametrize(("dialect", "both"), [("portable", False), ("decomposed", True)])
def test_a_tied_head_in_int4(
    quantisable: Callable[..., Path], tmp_path: Path, dialect: str, both: bool
) -> None:
    """Where the head keeps its type, a step multiplies with the embedding and reads all of it."""
    plan = plan_of(quantisable(tied=True), precision="vision=fp32,language=int4", dialect=dialect)
    with plan.checkpoint:
        manifest = export(plan, tmp_path / "bundle").manifest
    stored = sum(info.size for name, info in manifest.files.items() if name.startswith("language_model."))
    table = plan.vocabulary * plan.spec.width * (2 if dialect == "decomposed" else 4)
    assert manifest.language_model.cost is not None
    assert manifest.language_model.cost.weight_bytes == stored - (0 if both else table)
