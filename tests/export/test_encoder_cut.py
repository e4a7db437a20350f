"""Patches that leave inside the vision encoder: what is left is what transformers' tower makes of the same patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import NEXT, make_checkpoint
from exporting import export, plan_of
from qwen_checkpoints import make_qwen_checkpoint
from raising import refused

from divprune_edge.export.verify import verify_bundle
from divprune_edge.models.demo import CHECKPOINT
from divprune_edge.models.selectors.divprune import cosine_distances, max_min_select
from divprune_edge.models.towers import vit_graph
from divprune_edge.runtime.lab.inspection import inspect_selection
from divprune_edge.runtime.pipeline import Pipeline

# Four layers, three of which the feature needs.
DEEPER = {"num_hidden_layers": 4}
MADE: dict[str, dict[str, Any]] = {
    "without the class token": {"vision": DEEPER},
    "with the class token": {"vision": DEEPER, "llava": {"vision_feature_select_strategy": "full"}},
    "no class token": {
        "tower": "siglip_vision_model",
        "vision": DEEPER,
        "llava": {"vision_feature_select_strategy": "full"},
    },
    "two feature layers": {"vision": DEEPER, "llava": {"vision_feature_layer": [-2, -1]}},
}


def made(folder: Path, name: str = "without the class token") -> Path:
    return make_checkpoint(folder / "tiny", **MADE[name])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", MADE)
def test_the_rest_is_what_transformers_makes_of_these_patches(
    name: str, precision: str, tmp_path: Path
) -> None:
    plan = plan_of(made(tmp_path, name), encoder_cut="2:13", precision=precision, signals="all")
    bundle = export(plan, tmp_path / "bundle")
    result = verify_bundle(plan, bundle.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    assert "patches left inside" in {check.name for check in result.checks}
    vision = bundle.manifest.vision_encoder
    first = int(name == "with the class token")
    assert (vision.tokens, vision.uncut) == (13 + first, 25 + first)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_verification_sees_other_patches(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(ops: Any, tokens: Any, valid: Any, candidates: int, keep: int) -> Any:
        tiles = ops.op("Concat", ops.op("Shape", tokens, start=0, end=1), ops.constant([keep]), axis=0)
        return ops.op("Expand", ops.constant(np.arange(keep)[None]), tiles)

    monkeypatch.setattr(vit_graph, "write_selection", first)
    plan = plan_of(made(tmp_path), encoder_cut="2:13", precision=precision)
    bundle = export(plan, tmp_path / "bundle")
    failed = [c.name for c in verify_bundle(plan, bundle.folder, lambda line: None).checks if not c.passed]
    assert failed == ["patches left inside"]


def test_kept_tokens_are_counted_in_the_whole_image(image: Path, tmp_path: Path) -> None:
    plan = plan_of(CHECKPOINT, keep=40, encoder_cut="2:144")
    bundle = export(plan, tmp_path / "bundle")
    answer = Pipeline(bundle.folder).ask(image, "What is in the picture?")
    session = bundle.session("vision_encoder.onnx")
    inspected = inspect_selection(Pipeline(bundle.folder), image)
    tokens, origins = session.run(["visual_tokens", "origins"], {"pixels": inspected.pixels[None]})
    kept = max_min_select(tokens[0], np.ones(144, np.bool_), 40)
    assert answer.kept_indices.tolist() == origins[0][kept].tolist()
    assert answer.kept_indices.max() >= 144
    assert sorted(inspected.picks) == answer.kept_indices.tolist()
    assert inspected.coverage == pytest.approx(cosine_distances(tokens[0])[:, kept].min(axis=1).max())


def test_a_share_is_of_the_whole_image(tmp_path: Path) -> None:
    plan = plan_of(made(tmp_path), keep=None, prune="0.8", encoder_cut="2:13")
    assert (plan.keep, plan.candidates) == (5, 13)
    whole = plan_of(made(tmp_path / "b"), keep=5)
    assert plan.spec.vision_flops < whole.spec.vision_flops


def test_signals_of_layers_before_the_cut_are_not_offered(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", vision={"num_hidden_layers": 9})
    whole, late = (plan_of(folder, signals="all", **more).signals for more in ({}, {"encoder_cut": "7:13"}))
    assert set(whole) - set(late) == {"cls_attention_sum", "attention_object", "information_flow"}
    assert set(late) - set(whole) == {"origins"}


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("2", "option-invalid"),
        ("2:x", "option-invalid"),
        ("²:3", "option-invalid"),
        ("0:13", "encoder-cut-out-of-range"),
        ("3:13", "encoder-cut-out-of-range"),
        ("2:1", "encoder-cut-out-of-range"),
        ("2:25", "encoder-cut-out-of-range"),
        ("2:8", "keep-out-of-range"),
    ],
)
def test_what_cannot_be_is_refused(asked: str, code: str, tmp_path: Path) -> None:
    folder = made(tmp_path)
    with refused(code):
        plan_of(folder, encoder_cut=asked)


def test_models_that_cannot_lose_patches_are_refused(tmp_path: Path) -> None:
    first = make_checkpoint(
        tmp_path / "first",
        tower="siglip_vision_model",
        vision=DEEPER,
        llava={"vision_feature_select_strategy": "default"},
    )
    tiled, qwen = make_checkpoint(tmp_path / "next", **NEXT), make_qwen_checkpoint(tmp_path / "qwen")
    for folder, cut in ((first, "2:13"), (tiled, "1:13"), (qwen, "1:13")):
        with refused("encoder-cut-unsupported", "--encoder-cut"):
            plan_of(folder, encoder_cut=cut)
    with refused("options-exclusive", "--positions original"):
        plan_of(made(tmp_path), encoder_cut="2:13", numbering="original")
