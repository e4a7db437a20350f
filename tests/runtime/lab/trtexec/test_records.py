"""trtexec's JSON: files of its formats, made up by these tests, and files that are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from raising import refused
from trtexec_made_up import made_up_layers, made_up_profile, made_up_times

from divprune_edge.runtime.lab.trtexec.layers import COPIES, OWN, group_layers, module_of
from divprune_edge.runtime.lab.trtexec.records import (
    LayerInfo,
    LayerTime,
    by_name,
    read_layers,
    read_profile,
    read_times,
)

LM = "/language_model/layers"


def write(folder: Path, text: str) -> Path:
    path = folder / "file.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_times(tmp_path: Path) -> None:
    runs = read_times(write(tmp_path, made_up_times([1.5, 2.5], enqueue=0.25)))
    assert [run.compute for run in runs] == [1.5, 2.5]
    assert [run.enqueue for run in runs] == [0.25, 0.25]
    assert [run.latency for run in runs] == [1.5, 2.5]


def test_profile(tmp_path: Path) -> None:
    profile = read_profile(write(tmp_path, made_up_profile({"a": 0.5, "b": 0.25}, count=7)))
    assert profile.count == 7
    assert [(layer.name, layer.median, layer.total) for layer in profile.layers] == [
        ("a", 0.5, 3.5),
        ("b", 0.25, 1.75),
    ]
    assert profile.median_sum == 0.75


def test_layers_with_details_and_names_alone(tmp_path: Path) -> None:
    nodes = f"[ONNX Layer: {LM}.0/mlp/act/Mul]\x1e[ONNX Layer: {LM}.0/mlp/up_proj/MatMul]"
    detailed = read_layers(write(tmp_path, made_up_layers(["x", "y"], {"y": nodes})))
    assert [layer.onnx_nodes for layer in detailed] == [
        (),
        (f"{LM}.0/mlp/act/Mul", f"{LM}.0/mlp/up_proj/MatMul"),
    ]
    names = read_layers(write(tmp_path, '{"Layers": ["x"\n,"y"\n],\n"Bindings": ["in"\n]}'))
    assert [layer.name for layer in names] == ["x", "y"]


@pytest.mark.parametrize(
    ("reader", "text", "code", "part"),
    [
        (read_times, "[ {", "measurements-invalid", "JSON"),
        (read_times, "", "measurements-invalid", "JSON"),
        (read_times, "[]", "measurements-invalid", "no runs"),
        (read_times, "{}", "measurements-invalid", "no list"),
        (read_times, "[1]", "measurements-invalid", ""),
        (read_times, '[{"computeMs": 1}]', "measurements-invalid", "startEnqMs"),
        (
            read_times,
            made_up_times([1.0]).replace('"computeMs" : 1', '"computeMs" : -1'),
            "measurements-invalid",
            "computeMs",
        ),
        (
            read_times,
            made_up_times([1.0]).replace('"computeMs" : 1', '"computeMs" : NaN'),
            "measurements-invalid",
            "computeMs",
        ),
        (read_profile, "[]", "measurements-invalid", "--exportProfile"),
        (read_profile, '[{"name": "a"}]', "measurements-invalid", "--exportProfile"),
        (read_profile, '[{"count": 0}]', "measurements-invalid", "count"),
        (read_profile, '[{"count": 1}, {"name": "a"}]', "measurements-invalid", "layers.0"),
        (read_profile, '[{"count": 1}, {"name": "a", "timeMs": nan}]', "measurements-invalid", "JSON"),
        (read_profile, '[{"count": 1}, {"name": "a "quoted" name"}]', "measurements-invalid", "JSON"),
        (read_layers, "[]", "measurements-invalid", "'Layers'"),
        (read_layers, '{"Layers": 3}', "measurements-invalid", "'Layers'"),
        (read_layers, '{"Layers": [{"LayerType": "x"}]}', "measurements-invalid", "Name"),
    ],
)
def test_damaged_files(
    tmp_path: Path, reader: Callable[[Path], object], text: str, code: str, part: str
) -> None:
    with refused(code, "file.json", part) as told:
        reader(write(tmp_path, text))
    assert "\n" not in str(told.value)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with refused("measurements-missing"):
        read_times(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with refused("measurements-invalid"):
        read_times(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (f"{LM}.3/mlp/down_proj/MatMul", f"{LM}.3/mlp/down_proj"),
        (f"{LM}.3/mlp/gate_proj/MatMul + {LM}.3/mlp/act/Sigmoid", f"{LM}.3/mlp"),
        (f"PWN({LM}.3/mlp/act/Sigmoid, {LM}.3/mlp/act/Mul)", f"{LM}.3/mlp/act"),
        (f"PWN(PWN({LM}.3/mlp/act/Sigmoid), {LM}.3/mlp/Mul)", f"{LM}.3/mlp"),
        (f"{LM}.3/self_attn/q_proj/MatMul_myl0_12", f"{LM}.3/self_attn/q_proj"),
        (f"{{ForeignNode[{LM}.0/input_layernorm/Cast...{LM}.1/mlp/Add]}}", "/language_model"),
        ("{ForeignNode[model.weight.../vision_encoder/layers.0/Add]}", "/vision_encoder/layers.0"),
        (f"{LM}.0/mlp/Mul + /vision_encoder/projector/Add", "/"),
        (f"Reformatting CopyNode for Input Tensor 0 to {LM}.3/mlp/Mul", COPIES),
        ("copied_squeeze_after_add", COPIES),
        ("__myl_FcAddMulSilu_myl0_7", OWN),
        ("(Unnamed Layer* 12) [Shuffle]", OWN),
        ("", OWN),
    ],
)
def test_a_layer_belongs_to_a_module(name: str, module: str) -> None:
    assert module_of(name) == module


def test_metadata_tells_the_nodes_of_a_compiled_kernel() -> None:
    nodes = f"[ONNX Layer: {LM}.5/self_attn/k_proj/MatMul]\x1e[ONNX Layer: {LM}.5/self_attn/q_proj/MatMul]"
    info = LayerInfo(name="__myl_Fc", metadata=nodes)
    assert module_of("__myl_Fc", info) == f"{LM}.5/self_attn"
    # What the name says itself comes first.
    assert module_of(f"{LM}.5/mlp/Mul", info) == f"{LM}.5/mlp"


def test_blocks_are_taken_together() -> None:
    times = [
        *(time(f"{LM}.{i}/mlp/down_proj/MatMul", 0.5) for i in range(4)),
        *(time(f"{LM}.{i}/self_attn/o_proj/MatMul", 0.2) for i in range(4)),
        time("__myl_Cast_myl0_1", 0.1),
    ]
    groups = group_layers(times, by_name([]))
    assert [(g.module, g.layers, pytest.approx(g.ms)) for g in groups] == [
        (f"{LM}.*/mlp/down_proj", 4, 2.0),
        (f"{LM}.*/self_attn/o_proj", 4, 0.8),
        (OWN, 1, 0.1),
    ]


def time(name: str, ms: float) -> LayerTime:
    return LayerTime(name=name, total=10 * ms, average=ms, median=ms)
