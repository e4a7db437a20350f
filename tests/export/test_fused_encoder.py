"""An encoder whose attention is one operator computes what transformers does; signals stay what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from checkpoints import make_checkpoint
from exporting import export, plan_of
from qwen_checkpoints import QWEN, make_qwen_checkpoint

from divprune_edge.export.verify import verify_bundle

# Heads that dialect onnxruntime takes.
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def llava(folder: Path) -> Path:
    return make_checkpoint(folder, text={"hidden_size": 64})


def qwen(family: str) -> Callable[[Path], Path]:
    return lambda folder: make_qwen_checkpoint(folder, family=family)


MADE = {"llava": llava, **{family: qwen(family) for family in QWEN}}


@pytest.mark.parametrize(
    ("family", "precision", "target"),
    [
        *((family, "fp16", "cuda") for family in MADE),
        *((family, p, None) for family in QWEN for p in ("fp32", "int8")),
    ],
)
def test_attention_is_one_operator_a_layer(
    family: str, precision: str, target: str | None, tmp_path: Path
) -> None:
    made = MADE[family](tmp_path / "tiny")
    plan = plan_of(made, dialect="onnxruntime", precision=precision, target=target)
    bundle = export(plan, tmp_path / "bundle")
    kinds = Counter(node.op_type for node in ir.load(bundle.folder / "vision_encoder.onnx").graph)
    vision = plan.spec.vision
    assert kinds["MultiHeadAttention"] == getattr(vision, "used_layers", vision.layers)
    assert not kinds["Softmax"]
    result = verify_bundle(plan, bundle.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []


def test_signals_are_computed_beside_it(tmp_path: Path) -> None:
    plan = plan_of(
        llava(tmp_path / "tiny"), dialect="onnxruntime", precision="fp16", target="cuda", signals="all"
    )
    bundle = export(plan, tmp_path / "bundle")
    result = verify_bundle(plan, bundle.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    assert {"cls_attention", "keys"} <= set(plan.signals)


def test_elsewhere_it_is_written_out(tmp_path: Path) -> None:
    for dialect, target in (("onnxruntime", None), ("portable", "cuda"), ("decomposed", "orin-nano-8gb")):
        plan = plan_of(llava(tmp_path / "tiny"), dialect=dialect, precision="fp16", target=target)
        assert not plan.fuses_encoder
