"""Dialect ``onnxruntime`` computes what transformers does, in every variation of the language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from checkpoints import VARIATIONS, make_checkpoint
from exporting import Bundle, export, failures, plan_of
from raising import refused

from divprune_edge.export.verify import verify_bundle

NAMES = [
    "plain",
    "grouped queries",
    "one key-value head",
    "tied embeddings",
    "explicit head_dim",
    "attention and mlp bias",
    "mistral",
    "mistral, sliding window",
    "qwen2, sliding window in some layers",
    "qwen2",
    "llama3 rope",
    "one layer",
]


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Return the bundle of a variation, with heads of a size that the operator takes."""

    def make(name: str, precision: str = "fp32") -> Bundle:
        options = VARIATIONS[name]
        folder = tmp_path_factory.mktemp("fused")
        text = {"hidden_size": 64, **options.get("text", {})}
        make_checkpoint(folder / "tiny", **{**options, "text": text})
        return export(plan_of(folder / "tiny", precision=precision, dialect="onnxruntime"), folder / "bundle")

    return make


@pytest.mark.parametrize("name", NAMES)
def test_verification_passes(name: str, fused: Callable[..., Bundle]) -> None:
    bundle = fused(name)
    result = verify_bundle(bundle.plan, bundle.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    assert bundle.manifest.language_model.dialect == "onnxruntime"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_verify(precision: str, fused: Callable[..., Bundle]) -> None:
    bundle = fused("grouped queries", precision)
    assert failures(bundle.plan, bundle.folder) == set()


def test_a_truncated_run_verifies(fused: Callable[..., Bundle]) -> None:
    bundle = fused("plain")
    assert failures(bundle.plan, bundle.folder, layers=2) == set()


def test_attention_and_norms_are_fused(fused: Callable[..., Bundle]) -> None:
    graph = onnx.load(fused("plain").folder / "language_model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("GroupQueryAttention") == 3
    # Two norms per layer but the very first, which has nothing to add.
    assert kinds.count("SkipSimplifiedLayerNormalization") == 5
    assert "Attention" not in kinds and "RotaryEmbedding" not in kinds


def test_an_unknown_dialect_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with refused("dialect-unknown", "'onnxrt'", "'onnxruntime'"):
        plan_of(checkpoint("plain"), dialect="onnxrt")


@pytest.mark.parametrize("size", [10, 24])
def test_heads_of_another_size_are_refused(tmp_path: Path, size: int) -> None:
    """A multiple of 8 is not enough: the operator rotates, and refuses 24 when it runs."""
    make_checkpoint(tmp_path, text={"head_dim": size})
    with refused("dialect-head-size", 16, size, "--dialect portable"):
        plan_of(tmp_path, dialect="onnxruntime")
