"""Real bundles of every dialect against targets: what is clean, what is refused, and the memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exporting import Bundle
from raising import refused

from divprune_edge.export.check.bundle import CheckReport, check_bundle, elements_of
from divprune_edge.export.check.graph import read_graph
from divprune_edge.export.check.liveness import live_activations
from divprune_edge.export.check.printing import report_json, show_report
from divprune_edge.export.targets import dialects_of, forecast_plan
from divprune_edge.export.targets import elements_of as planned_elements
from divprune_edge.manifest import LanguageInfo, LayerGroup
from divprune_edge.models.selectors import SELECTORS
from divprune_edge.models.targets import TARGETS, Target

Demo = Callable[..., Bundle]
ORIN, ORIN_7 = TARGETS["orin-nano-8gb"], TARGETS["orin-nano-8gb-jp7"]
INT4 = "vision=fp16,language=int4"


def errors_of(report: CheckReport) -> set[tuple[str, str]]:
    return {(f.graph, f.op) for f in report.findings if f.severity == "error"}


@pytest.mark.parametrize(
    ("dialect", "target", "precision"),
    [
        ("decomposed", ORIN, "fp16"),
        ("decomposed", ORIN, "fp32"),
        ("decomposed", ORIN, INT4),
        ("decomposed", ORIN_7, "fp16"),
        ("static", ORIN_7, "fp16"),
        ("static", ORIN_7, INT4),
        ("static", TARGETS["h100"], "fp16"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_what_a_target_takes(demo: Demo, dialect: str, target: Target, precision: str) -> None:
    """All three graphs, signals included, and every selector."""
    report = check_bundle(demo(dialect, precision).folder, target)
    assert report.clean, report.findings
    assert len(report.graphs) == 2 + len(SELECTORS)
    assert {f.rule for f in report.findings} <= {"opset"}
    assert bool(report.findings) == (precision == INT4 and target is ORIN), "opset 21, for int4 alone"


def test_dialects_that_tensorrt_10_3_cannot_read(demo: Demo) -> None:
    report = check_bundle(demo("portable").folder, ORIN)
    language = "language_model.onnx"
    assert errors_of(report) == {
        (language, op) for op in ("Attention", "RMSNormalization", "RotaryEmbedding")
    }
    assert (language, "TensorScatter") in errors_of(check_bundle(demo("static").folder, ORIN))
    fused = errors_of(check_bundle(demo("onnxruntime").folder, ORIN_7))
    assert fused == {(language, op) for op in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization")}


def test_portable_on_tensorrt_10_16(demo: Demo) -> None:
    report = check_bundle(demo("portable").folder, ORIN_7)
    assert errors_of(report) == {("language_model.onnx", "Attention")}
    assert any("past_key is not taken" in f.message for f in report.findings)


def test_int8_on_tensorrt(demo: Demo) -> None:
    operators = errors_of(check_bundle(demo("portable", "int8").folder, ORIN_7))
    assert ("vision_encoder.onnx", "MatMulInteger") in operators


def test_the_selector_variant_that_is_needed(demo: Demo) -> None:
    folder = demo("decomposed").folder
    old, new = (check_bundle(folder, target) for target in (ORIN, ORIN_7))
    plugins = [[graph.file for graph in report.graphs if graph.plugin] for report in (old, new)]
    assert plugins == [["selectors/stripped/divprune-58.onnx"], ["selectors/divprune-58.onnx"]]
    assert [json.loads(report_json(r))["selector_variant"] for r in (old, new)] == [
        "selectors/stripped",
        "selectors",
    ]


@pytest.mark.parametrize("target", [ORIN, ORIN_7], ids=lambda target: target.name)
def test_tokens_that_the_plugin_refuses(demo: Demo, tmp_path: Path, target: Target) -> None:
    """Only the selector that has a plugin: it would fail when the engine is built, on the board."""
    folder = tmp_path / "bundle"
    shutil.copytree(demo("decomposed").folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["vision_encoder"]["token_width"] = 42
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (finding,) = check_bundle(folder, target).findings
    assert (finding.severity, finding.rule, finding.op) == ("error", "plugin", "MaxMinDiversity")
    assert finding.message.endswith("a multiple of 8, up to 65536, but there are 576 of width 42")


def test_onnx_runtime_on_cuda(demo: Demo) -> None:
    cuda = TARGETS["cuda"]
    assert check_bundle(demo("onnxruntime").folder, cuda).clean
    assert check_bundle(demo("portable", "fp32").folder, cuda).clean
    report = check_bundle(demo("onnxruntime", "fp32").folder, cuda)
    assert [f.op for f in report.findings] == ["GroupQueryAttention"]
    assert not report.clean
    assert not check_bundle(demo("portable", "int8").folder, cuda).clean


def test_onnx_runtime_on_the_cpu(demo: Demo) -> None:
    assert check_bundle(demo("portable", "int8").folder, TARGETS["cpu"]).findings == ()
    report = check_bundle(demo("onnxruntime").folder, TARGETS["cpu"])
    assert report.clean
    assert {f.severity for f in report.findings} == {"warning"}
    assert report.forecast is None


def test_memory_by_hand(demo: Demo) -> None:
    bundle = demo("decomposed", "fp16")
    info = bundle.manifest.language_model
    assert info.capacity == 512
    report = check_bundle(bundle.folder, ORIN)
    assert report.forecast is not None
    need = report.forecast.need
    sizes = {file: entry.size for file, entry in bundle.manifest.files.items()}
    # Small tensors and alignment are what the files have more or less.
    assert need.vision + need.language == pytest.approx(bundle.plan.weight_bytes, rel=0.1)
    assert need.vision == pytest.approx(sizes["vision_encoder.data"], rel=0.1)
    assert need.cache == 2 * info.layers * info.kv_heads * info.head_dim * 512 * 2
    assert need.rows == 512
    assert report.stored == need.vision + need.language, "the demo's head is no second copy"


def test_the_plan_s_forecast_agrees_with_the_graphs(demo: Demo) -> None:
    for dialect in ("static", "decomposed"):
        for precision in ("fp16", INT4):
            bundle = demo(dialect, precision)
            before, after = forecast_plan(bundle.plan, ORIN), check_bundle(bundle.folder, ORIN).forecast
            assert before is not None
            assert after is not None
            assert before.need.cache == after.need.cache
            rotary = 2 * 2048 * (48 // 2) * 2
            assert 0 <= after.need.language - rotary - before.need.language < 4096, "small constants"
            assert before.need.vision == pytest.approx(after.need.vision, rel=0.1)


def test_weights_are_counted_by_what_may_become_of_them(demo: Demo) -> None:
    for precision in ("fp16", INT4):
        bundle = demo("static", precision)
        vision, language = (
            read_graph(bundle.folder / file) for file in ("vision_encoder.onnx", "language_model.onnx")
        )
        counted, planned = elements_of(vision, [language]), planned_elements(bundle.plan)
        assert counted.matrices == planned.matrices
        assert counted.vision == pytest.approx(planned.vision, rel=0.01)
        # The rotary tables are no parameters.
        assert planned.rest <= counted.rest < planned.rest + 2 * 2048 * 48


def test_too_little_memory_is_refused_with_what_would_fit(demo: Demo) -> None:
    small = replace(ORIN, memory_bytes=int(1.5 * 2**30) + (1 << 30))
    report = check_bundle(demo("decomposed").folder, small)
    assert not report.clean
    assert report.refused is not None
    assert report.refused.startswith("This takes 1.0")
    assert "what would fit is" in report.refused
    found = json.loads(report_json(report))
    assert found["clean"] is False
    assert found["memory"]["fits"] is False
    assert found["refused"] == report.refused


def test_a_context_that_there_is_no_room_for(demo: Demo) -> None:
    folder = demo("decomposed").folder
    with refused("context-out-of-range", "--context 1000", 512, "--capacity"):
        check_bundle(folder, ORIN, 1000)
    with refused("context-out-of-range", "--context -5", 512):
        check_bundle(folder, ORIN, -5)
    whole, half = check_bundle(folder, ORIN), check_bundle(folder, ORIN, 100)
    assert whole.forecast
    assert half.forecast
    assert half.forecast.need.cache == whole.forecast.need.cache, "its size is part of the graph"
    assert half.forecast.need.activations < whole.forecast.need.activations
    growing = [check_bundle(demo("portable").folder, ORIN_7, tokens).forecast for tokens in (100, 200)]
    assert growing[0]
    assert growing[1]
    assert 2 * growing[0].need.cache == growing[1].need.cache


def test_activations_by_hand(tmp_path: Path) -> None:
    """x -> a -> b -> y with a read again at the end: a, b and c are alive together."""
    info = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"], name="first"),
        onnx.helper.make_node("Reshape", ["a", "shape"], ["flat"], name="free"),
        onnx.helper.make_node("Exp", ["flat"], ["b"], name="second"),
        onnx.helper.make_node("Sigmoid", ["b"], ["c"], name="third"),
        onnx.helper.make_node("Add", ["c", "flat"], ["y"], name="last"),
    ]
    shape = onnx.numpy_helper.from_array(np.array([200]), "shape")
    graph = onnx.helper.make_graph(
        nodes, "g", [info("x", kind, ["batch", 100])], [info("y", kind, None)], [shape]
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "g.onnx"
    )
    found = live_activations(read_graph(tmp_path / "g.onnx", {"batch": 2}))
    assert (found.peak, found.node, found.unknown) == (3 * 200 * 4, "third", 0)
    assert live_activations(read_graph(tmp_path / "g.onnx")).unknown > 0


def test_every_size_in_our_graphs_is_known(demo: Demo) -> None:
    for dialect in ("static", "decomposed"):
        assert check_bundle(demo(dialect).folder, ORIN).widest.unknown == 0


def test_a_bundle_without_one_of_its_graphs(demo: Demo, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(demo("decomposed").folder, folder)
    (folder / "selectors" / "random-58.onnx").unlink()
    with refused("bundle-file-missing", "selectors/random-58.onnx"):
        check_bundle(folder, ORIN)
    (folder / "vision_encoder.onnx").write_bytes(b"no graph")
    with refused("graph-unreadable", "vision_encoder.onnx"):
        check_bundle(folder, ORIN)


def test_the_caches_of_all_groups_of_layers_count(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    def cache() -> int:
        found = check_bundle(demo("decomposed").folder, ORIN).forecast
        assert found is not None
        return found.need.cache

    whole = cache()
    monkeypatch.setattr(LanguageInfo, "groups", [LayerGroup(0, 1, 512), LayerGroup(1, 3, 128)])
    assert cache() == whole * (512 + 3 * 128) // (4 * 512)


def test_the_report_for_people(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(check_bundle(demo("decomposed").folder, ORIN))
    shown = capsys.readouterr().out
    for part in (
        "Jetson Orin Nano 8GB, JetPack 6.2, TensorRT 10.3",
        "list of TensorRT 10.1",
        "additions of 10.3",
        "selectors/stripped",
        "KV cache, 512 rows",
        "Verdict: nothing against it. Evidence: E2",
    ):
        assert part in shown
    assert "in dialect" not in shown
    show_report(check_bundle(demo("portable").folder, ORIN))
    shown = capsys.readouterr().out
    assert (
        "error language_model.onnx: Attention is not in the operator list of TensorRT 10.3 (4 nodes" in shown
    )
    assert "Verdict: refused (3 errors)" in shown
    assert (
        "in dialect portable, orin-nano-8gb takes decomposed: export it with --target orin-nano-8gb" in shown
    )


def test_the_report_for_programs(demo: Demo) -> None:
    found: dict[str, Any] = json.loads(report_json(check_bundle(demo("portable").folder, ORIN)))
    assert (found["target"], found["tensorrt"], found["clean"]) == ("orin-nano-8gb", "10.3", False)
    assert found["evidence"].startswith("E2")
    assert {"graph", "severity", "rule", "operator", "message", "node", "count"} == set(found["findings"][0])
    assert found["memory"]["build"]["total"] > found["memory"]["build"]["device"]


def test_every_dialect_of_a_target_is_one_that_its_list_takes(demo: Demo) -> None:
    for name in ("orin-nano-8gb", "orin-nano-8gb-jp7"):
        for dialect in ("portable", "onnxruntime", "static", "decomposed"):
            clean = check_bundle(demo(dialect).folder, TARGETS[name]).clean
            assert clean == (dialect in dialects_of(TARGETS[name]))


def rename_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "Bernoulli"


def count_in_integers(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Max")
    node.op_type = "Clip"
    node.input.append(node.input[1])


def compute_axes(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Unsqueeze")
    axes = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    value = onnx.helper.make_tensor_value_info("axes", onnx.TensorProto.INT64, list(axes.dims))
    model.graph.input.append(value)
    node.input[1] = "axes"


@pytest.mark.parametrize(
    ("change", "rule", "op"),
    [
        (rename_operator, "operator", "Bernoulli"),
        (count_in_integers, "dtype", "Clip"),
        (compute_axes, "constant axes", "Unsqueeze"),
    ],
)
def test_a_changed_graph_is_refused(
    demo: Demo, tmp_path: Path, change: Callable[[onnx.ModelProto], None], rule: str, op: str
) -> None:
    """The clean language model with one node changed."""
    folder = tmp_path / "copy"
    shutil.copytree(demo("decomposed").folder, folder)
    model = onnx.load(folder / "language_model.onnx", load_external_data=False)
    change(model)
    onnx.save(model, folder / "language_model.onnx")
    report = check_bundle(folder, ORIN)
    assert not report.clean
    (finding,) = [f for f in report.findings if f.severity == "error"]
    assert (finding.graph, finding.rule, finding.op) == ("language_model.onnx", rule, op)
