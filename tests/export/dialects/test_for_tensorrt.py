"""Dialects ``static`` and ``decomposed``: what transformers computes, in the operators that TensorRT lists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import VARIATIONS, make_checkpoint
from exporting import Bundle, export, failures, images, plan_of, see, select
from raising import refused

from divprune_edge.export.verify import verify_bundle
from divprune_edge.export.verify.comparison import relative_error
from divprune_edge.export.verify.graphs import open_language
from divprune_edge.export.verify.oracle import Oracle

DIALECTS = pytest.mark.parametrize("dialect", ["static", "decomposed"])
NAMES = [
    "plain",  # heads of 10
    "grouped queries",
    "one key-value head",
    "tied embeddings",
    "explicit head_dim",
    "attention and mlp bias",
    "mistral",
    "mistral, sliding window",
    "qwen2",
    "llama3 rope",
    "one layer",
]

# Operators of the language graph that are in the parser's list for TensorRT 10.1, with the element types in use:
# onnx-tensorrt, branch release/10.1-GA, docs/operators.md.
LISTED = {
    "Add",
    "Cast",
    "Concat",
    "DequantizeLinear",
    "Div",
    "Gather",
    "GatherND",
    "Gemm",
    "Less",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "ReduceMean",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
}
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
"""Operators below do not take integers there."""
FLOATS_ONLY = {"MatMul", "Gemm", "Softmax", "Sqrt", "Sigmoid"}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]
) -> Callable[..., Bundle]:
    """Return the bundle of a variation, with a budget of 9 tokens."""

    @cache
    def get(dialect: str, name: str = "grouped queries", precision: str = "fp32", **options: Any) -> Bundle:
        plan = plan_of(checkpoint(name), dialect=dialect, precision=precision, **options)
        return export(plan, tmp_path_factory.mktemp("bundle") / "tiny")

    return get


@pytest.fixture(scope="module")
def narrow(
    tmp_path_factory: pytest.TempPathFactory, quantisable: Callable[..., Path]
) -> Callable[..., Bundle]:
    """Return a bundle whose language model is in int4, its head tied or not."""

    @cache
    def get(dialect: str, precision: str = "vision=fp16,language=int4", tied: bool = False) -> Bundle:
        plan = plan_of(quantisable(tied), dialect=dialect, precision=precision)
        return export(plan, tmp_path_factory.mktemp("bundle") / "tiny")

    return get


def model_of(bundle: Bundle) -> Any:
    return onnx.load(bundle.folder / "language_model.onnx", load_external_data=False)


@DIALECTS
@pytest.mark.parametrize("name", NAMES)
def test_verification_passes(dialect: str, name: str, made: Callable[..., Bundle]) -> None:
    bundle = made(dialect, name)
    assert failures(bundle.plan, bundle.folder) == set()
    language = bundle.manifest.language_model
    assert (language.dialect, language.capacity, language.positions) == (dialect, 256, 256)


@DIALECTS
def test_other_precisions_verify(
    dialect: str, made: Callable[..., Bundle], narrow: Callable[..., Bundle]
) -> None:
    for bundle in (
        made(dialect, "explicit head_dim", "fp16"),
        narrow(dialect),
        narrow(dialect, "int4", tied=True),
    ):
        assert failures(bundle.plan, bundle.folder) == set()
        assert bundle.plan.language_dtype == bundle.manifest.language_model.cache_dtype == "float16"
        assert bundle.plan.token_dtype == bundle.manifest.token_dtype == "float16"


def test_sixteen_bits_want_heads_of_a_multiple_of_eight(checkpoint: Callable[[str], Path]) -> None:
    """TensorRT's builder fails on others; in float32, and in dialect ``decomposed``, it takes any size."""
    assert plan_of(checkpoint("plain"), dialect="decomposed", precision="fp16").spec.decoder.head_dim == 10
    with refused("dialect-head-size", "static", "float16", 8, 10, "decomposed"):
        plan_of(checkpoint("plain"), dialect="static", precision="fp16")


@DIALECTS
def test_a_truncated_run_verifies(dialect: str, made: Callable[..., Bundle]) -> None:
    bundle = made(dialect, "plain")
    assert failures(bundle.plan, bundle.folder, layers=2) == set()


@DIALECTS
def test_greedy_tokens_of_transformers_up_to_the_last_row(dialect: str, made: Callable[..., Bundle]) -> None:
    """A prompt of 25 and 71 steps in a cache of 96 rows, in one piece and in three."""
    bundle = made(dialect, capacity=96)
    kept = select(bundle, see(bundle, images(bundle)))[0]
    before, after = np.array([1, 5, 7, 9, 30, 31, 22]), np.array([12, 13, 8, 6, 7, 41, 17, 19, 20])
    oracle = Oracle(bundle.plan.family.reference, bundle.plan.checkpoint.folder)
    answer = oracle.answer(
        np.concatenate([oracle.embed(before), kept[0], oracle.embed(after)]), steps=96 - 25
    )
    ids = np.concatenate([before, bundle.rows + np.arange(9), after])[None]
    graph = open_language([bundle.folder / "language_model.onnx"], dialect)
    for cuts in ([], [8, 20]):
        found = graph.follow(ids, kept, np.ones(ids.shape, bool), answer.tokens[None], cuts)[0]
        assert relative_error(found, answer.logits) < 1e-4
        assert np.array_equal(found.argmax(axis=-1)[:-1], answer.tokens)


@DIALECTS
def test_the_whole_graph_is_valid_and_its_cache_has_one_size(
    dialect: str, made: Callable[..., Bundle]
) -> None:
    bundle = made(dialect, "mistral")
    onnx.checker.check_model(str(bundle.folder / "language_model.onnx"), full_check=True)
    info = bundle.manifest.language_model
    shapes = {tensor.name: tensor.shape for tensor in (*info.inputs, *info.outputs)}
    for i in range(info.layers):
        for part in ("key", "value"):
            assert shapes[f"past_key_values.{i}.{part}"] == ("batch", 2, 256, 10)
    if dialect == "static":
        assert shapes["attention_mask"] == ("batch", 1, "seq", 256)
        assert shapes["write_indices"] == ("batch",)
        assert shapes["present.2.value"] == ("batch", 2, 256, 10)
    else:
        assert shapes["cache_mask"] == ("batch", 1, 1, 256)
        assert shapes["new_mask"] == ("batch", 1, "seq", "seq")
        assert shapes["new_key_values.2.value"] == ("batch", 2, "seq", 10)
    assert shapes["position_ids"] == ("batch", "seq")


@pytest.mark.parametrize("name", ["plain", "grouped queries", "attention and mlp bias"])
def test_decomposed_stays_within_the_list(name: str, made: Callable[..., Bundle]) -> None:
    for precision in ("fp32", "fp16"):
        model = model_of(made("decomposed", name, precision))
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        assert {node.op_type for node in model.graph.node} <= LISTED
        check_types(made("decomposed", name, precision))


def test_decomposed_in_int4(narrow: Callable[..., Bundle]) -> None:
    bundle = narrow("decomposed")
    model = model_of(bundle)
    assert model.opset_import[0].version == 21, "blocks came with it"
    assert {node.op_type for node in model.graph.node} <= LISTED
    check_types(bundle)


def check_types(bundle: Bundle) -> None:
    """Nothing takes integers that the parser's list gives to floats alone, and axes are constants."""
    model = onnx.shape_inference.infer_shapes(model_of(bundle), strict_mode=True)
    graph = model.graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    constants = {t.name for t in graph.initializer}
    for node in graph.node:
        if node.op_type in FLOATS_ONLY:
            assert {kinds[name] for name in node.input} <= FLOATS, node.name
        if node.op_type in ("Slice", "ReduceMean", "Unsqueeze", "Split"):
            assert set(node.input[1:]) <= constants, node.name
        assert kinds[node.output[0]] != onnx.TensorProto.UINT8, node.name


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_static_uses_what_tensorrt_turns_into_an_update_in_place(
    precision: str, made: Callable[..., Bundle]
) -> None:
    model = model_of(made("static", "explicit head_dim", precision))
    assert (model.opset_import[0].version, model.ir_version) == (24, 12)
    inputs, outputs = ({value.name for value in values} for values in (model.graph.input, model.graph.output))
    nodes = {
        kind: [n for n in model.graph.node if n.op_type == kind] for kind in ("TensorScatter", "Attention")
    }
    assert len(nodes["TensorScatter"]) == 6
    for node in nodes["TensorScatter"]:
        values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert values == {"axis": -2, "mode": b"linear"}
        assert node.input[0] in inputs and node.output[0] in outputs and node.input[2] == "write_indices"
    assert len(nodes["Attention"]) == 3
    for node in nodes["Attention"]:
        assert len(node.input) == 4 and len(node.output) == 1, "past and lengths are not supported there"
        assert not node.attribute, "TensorRT's parser refuses softcap and softmax_precision"


def test_softmax_without_its_precision_named(made: Callable[..., Bundle], tmp_path: Path) -> None:
    """ONNX Runtime 1.31 heeds the attribute as little as TensorRT takes it: not one bit of the logits moves."""
    bundle = made("static", "explicit head_dim", "fp16")
    named = Path(shutil.copytree(bundle.folder, tmp_path / "named")) / "language_model.onnx"
    model = onnx.load(named, load_external_data=False)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    for node in attention:
        node.attribute.append(onnx.helper.make_attribute("softmax_precision", onnx.TensorProto.FLOAT))
    assert len(attention) == bundle.manifest.language_model.layers
    onnx.save(model, named)
    kept = select(bundle, see(bundle, images(bundle)))[0]
    ids = np.concatenate([[1, 5, 7, 9, 30], bundle.rows + np.arange(9), np.arange(12, 40)])[None]
    plain, wanted = (
        open_language([path], "static").follow(ids, kept, np.ones(ids.shape, bool), np.array([[5, 6, 7]]), [])
        for path in (bundle.folder / "language_model.onnx", named)
    )
    assert np.array_equal(plain, wanted)


@DIALECTS
@pytest.mark.parametrize("tied", [False, True])
def test_int4_is_blocks_of_float16_and_a_head_that_is_not_quantised(
    dialect: str, tied: bool, narrow: Callable[..., Bundle]
) -> None:
    bundle = narrow(dialect, tied=tied)
    graph = model_of(bundle).graph
    kinds = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    quantised = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(quantised) == 3 * 7
    for node in quantised:
        values, scales = (kinds[name] for name in node.input)
        assert values[0] == onnx.TensorProto.INT4 and scales[0] == onnx.TensorProto.FLOAT16
        assert scales[1] == (values[1][0] // 64, values[1][1])
        assert not node.name.startswith("/lm_head")
    (head,) = (node for node in graph.node if node.name.startswith("/lm_head"))
    assert (head.op_type, kinds[head.input[1]][0]) == ("Gemm", onnx.TensorProto.FLOAT16)
    assert (head.input[1] == "model.language_model.embed_tokens.weight") == tied
    assert onnx.TensorProto.INT8 not in {kind for kind, _ in kinds.values()}


@DIALECTS
@pytest.mark.parametrize("precision", ["int8", "vision=int8,language=int4", "vision=fp16,language=int8"])
def test_int8_is_refused(dialect: str, precision: str, quantisable: Callable[..., Path]) -> None:
    graph = "language" if precision.endswith("language=int8") else "vision"
    with refused(
        "precision-with-dialect", f"{graph}=int8", f"--dialect {dialect}", "MatMulInteger", f"{graph}=fp16"
    ):
        plan_of(quantisable(), dialect=dialect, precision=precision)


@DIALECTS
def test_the_capacity_that_was_asked_for(dialect: str, made: Callable[..., Bundle]) -> None:
    bundle = made(dialect, capacity=73)
    assert bundle.manifest.language_model.positions == 73
    result = verify_bundle(bundle.plan, bundle.folder, lambda line: None)
    assert [check for check in result.checks if not check.passed] == []


@pytest.mark.parametrize("dialect", ["portable", "onnxruntime"])
def test_a_cache_that_grows_has_no_capacity(dialect: str, quantisable: Callable[..., Path]) -> None:
    assert plan_of(quantisable(), dialect=dialect).capacity is None
    with refused("capacity-with-dialect", "--capacity 128", f"--dialect {dialect}"):
        plan_of(quantisable(), dialect=dialect, capacity=128)


@pytest.mark.parametrize("capacity", [0, 72, 257])
def test_a_capacity_out_of_range_is_one_sentence(capacity: int, checkpoint: Callable[[str], Path]) -> None:
    with refused("capacity-out-of-range", f"--capacity {capacity}", 9, 73, 256):
        plan_of(checkpoint("plain"), dialect="static", capacity=capacity)


@DIALECTS
def test_windows_of_some_layers_are_refused(dialect: str, tmp_path: Path) -> None:
    options = VARIATIONS["qwen2, sliding window in some layers"]
    text = options["text"] | {"sliding_window": 80}
    checkpoint = make_checkpoint(tmp_path / "tiny", **options | {"text": text})
    with refused("sliding-window-unsupported", 80, dialect):
        plan_of(checkpoint, keep=9, dialect=dialect, capacity=81)
    assert plan_of(checkpoint, keep=9, dialect=dialect, capacity=80).spec.decoder.windows == ()


@DIALECTS
def test_a_window_that_is_off_by_one_is_caught(dialect: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", **VARIATIONS["mistral, sliding window"])
    bundle = export(plan_of(checkpoint, dialect=dialect), tmp_path / "bundle")
    assert bundle.manifest.language_model.window == 11
    decoder = replace(bundle.plan.spec.decoder, windows=(12,) * 3)
    wrong = replace(bundle.plan, spec=replace(bundle.plan.spec, decoder=decoder))
    assert "language: prefill" in failures(wrong, bundle.folder)
