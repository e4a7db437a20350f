"""What ``--precision`` and ``--block-size`` take, and what they refuse before any work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import onnxruntime
import pytest
from exporting import Bundle, export, plan_of
from onnx import TensorProto
from raising import refused

from divprune_edge.export.precision import (
    Precisions,
    activation_type,
    largest_block,
    parse_precisions,
)
from divprune_edge.export.verify import verify_bundle
from divprune_edge.export.verify.weights import GraphFile

BITS = {TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.INT8: 8, TensorProto.INT4: 4}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("fp32", Precisions("fp32", "fp32")),
        ("int8", Precisions("int8", "int8")),
        ("vision=int8,language=int4", Precisions("int8", "int4")),
        (" language = fp16 , vision=fp32", Precisions("fp32", "fp16")),
    ],
)
def test_one_name_or_one_for_each_graph(text: str, wanted: Precisions) -> None:
    assert parse_precisions(text) == wanted


def test_the_summary_reads_back() -> None:
    for precisions in (Precisions("int8", "int8"), Precisions("int8", "int4")):
        assert parse_precisions(str(precisions)) == precisions


def test_only_half_precision_has_narrow_activations() -> None:
    assert [activation_type(p) for p in ("fp32", "fp16", "int8", "int4")] == [
        "float32",
        "float16",
        "float32",
        "float32",
    ]
    assert activation_type("int4", half=True) == "float16"
    assert activation_type("fp32", half=True) == "float32"


@pytest.mark.parametrize(
    ("text", "code", "given"),
    [
        ("int5", "precision-unknown", "did you mean"),
        ("bf16", "precision-unknown", "bf16"),
        ("vision=int9,language=int4", "precision-unknown", "vision=int9,language=int4"),
        ("vison=int8,language=int4", "precision-graphs-invalid", "'vison' (did you mean 'vision'?)"),
        ("vision=int8,vision=int4", "precision-graphs-invalid", "'vision'"),
        ("vision=int8,", "precision-graphs-invalid", "''"),
        ("", "precision-unknown", ""),
    ],
)
def test_mistakes_are_one_sentence(text: str, code: str, given: str) -> None:
    with refused(code, given):
        parse_precisions(text)


@pytest.mark.parametrize(
    ("text", "default", "read"),
    [
        ("language=int4", "fp32", "vision=fp32,language=int4"),
        ("language=int4", "fp16", "vision=fp16,language=int4"),
        ("vision=fp16", "vision=fp32,language=int4", "vision=fp16,language=int4"),
        ("vision=int8,language=int8", "fp16", "int8"),
        ("int4", "fp16", "int4"),
    ],
)
def test_a_graph_that_is_not_named_takes_the_default(text: str, default: str, read: str) -> None:
    assert str(parse_precisions(text, default=default)) == read


def test_another_block_size_is_refused() -> None:
    with refused("block-size-unsupported", "--block-size 48", 32, 64, 128):
        parse_precisions("int4", 48)


def test_a_block_size_that_does_not_divide_is_refused(checkpoint: Callable[[str], Path]) -> None:
    with refused("block-size-unfit", 32, "int8"):
        plan_of(checkpoint("plain"), precision="int4")


def test_blocks_for_tensorrt(quantisable: Callable[..., Path]) -> None:
    """The largest that divides; one that TensorRT does not take is refused before any work."""
    assert [largest_block(widths) for widths in ((256, 128), (192, 384), (96,), ())] == [128, 64, 64, 128]
    chosen = plan_of(quantisable(False), precision="vision=fp16,language=int4", dialect="decomposed")
    assert chosen.block_widths == {64, 128}
    assert chosen.precisions.block_size == 64
    assert plan_of(quantisable(False), precision="int4").precisions.block_size == 32
    with refused("block-size-with-dialect", "--block-size 32", "--dialect decomposed", 64, 128):
        plan_of(quantisable(False), precision="int4", dialect="decomposed", block_size=32)


@pytest.mark.parametrize("dialect", ["onnxruntime", "portable"])
def test_for_cuda_int4_meets_float16(dialect: str, quantisable: Callable[..., Path], tmp_path: Path) -> None:
    """Every product with four bits is one kernel, in float16 as the attention is; transformers agrees."""
    plan = plan_of(quantisable(), precision="vision=fp16,language=int4", dialect=dialect, target="cuda")
    assert plan.language_dtype == "float16"
    exported = export(plan, tmp_path / "bundle")
    assert_planned_size(exported)
    result = verify_bundle(plan, exported.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        exported.folder / "language_model.onnx", options, providers=["CPUExecutionProvider"]
    )
    kinds = Counter(node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph)
    assert kinds["MatMulNBits"] == 7 * plan.spec.decoder.layers
    assert not kinds["DequantizeLinear"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4", "vision=int8,language=int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_planned_size_is_that_of_the_weights(
    precision: str, tied: bool, quantised: Callable[..., Bundle]
) -> None:
    assert_planned_size(quantised(precision, tied))


@pytest.mark.parametrize("precision", ["fp16", "int4", "vision=fp16,language=int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_planned_size_for_tensorrt(
    precision: str, tied: bool, quantisable: Callable[..., Path], tmp_path: Path
) -> None:
    """Scales in float16, and the head in it as well: a tied one is the embedding."""
    plan = plan_of(quantisable(tied), precision=precision, dialect="decomposed")
    assert_planned_size(export(plan, tmp_path / "bundle"))


def assert_planned_size(bundle: Bundle) -> None:
    bits = 0
    for file in ("vision_encoder.onnx", "language_model.onnx"):
        graph = GraphFile(bundle.folder / file)
        for name in graph.weights():
            tensor = graph.initializers[name]
            bits += math.prod(tensor.dims) * BITS[tensor.data_type]
    assert bundle.plan.weight_bytes == bits // 8
