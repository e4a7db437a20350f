"""Verification can fail: each mistake that an exporter could make is made here, and must be caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import make_checkpoint
from exporting import export, failures, plan_of

from divprune_edge.export.plan import ExportPlan
from divprune_edge.export.weights import Weights

LATE = 5
"""The last decoder layer of ``plan``."""
DECODER = "model.language_model"


def exported_as(plan: ExportPlan, folder: Path) -> Path:
    """Export a plan that is wrong somewhere; the right one verifies it."""
    return export(plan, folder / "bundle").folder


@pytest.mark.parametrize("layers", [None, 2, 4])
def test_the_sound_bundle_passes(plan: ExportPlan, staged: Path, layers: int | None) -> None:
    assert failures(plan, staged, layers=layers) == set()
    assert not list(staged.glob(".*")), "a truncated copy was left behind"


# --- q and k of a late layer -----------------------------------------------------------------------------------


def edit_graph(path: Path, edit: Callable[[Any], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    edit(model.graph)
    onnx.save(model, path)


def node_of(graph: Any, name: str) -> Any:
    return next(node for node in graph.node if node.name == name)


def initializer_of(graph: Any, name: str) -> Any:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def where_is(folder: Path, name: str) -> tuple[Path, int, int]:
    """Return (file, offset, length) of an external weight of the language model."""
    graph = onnx.load(folder / "language_model.onnx", load_external_data=False).graph
    place = {entry.key: entry.value for entry in initializer_of(graph, name).external_data}
    return folder / place["location"], int(place["offset"]), int(place["length"])


@pytest.mark.parametrize("layers", [None, 2])
def test_q_and_k_read_each_other(plan: ExportPlan, staged: Path, layers: int | None) -> None:
    def swap(graph: Any) -> None:
        q, k = (
            node_of(graph, f"/language_model/layers.{LATE}/self_attn/{part}_proj/MatMul") for part in "qk"
        )
        q.input[1], k.input[1] = k.input[1], q.input[1]

    edit_graph(staged / "language_model.onnx", swap)
    found = failures(plan, staged, layers=layers)
    assert "structure: weights misplaced" in found
    assert ("language: prefill" in found) == (layers is None)


@pytest.mark.parametrize("layers", [None, 2])
def test_bytes_of_q_and_k_are_swapped(plan: ExportPlan, staged: Path, layers: int | None) -> None:
    places = [where_is(staged, f"{DECODER}.layers.{LATE}.self_attn.{part}_proj.weight.T") for part in "qk"]
    file = places[0][0]
    data = bytearray(file.read_bytes())
    (_, q, length), (_, k, _) = places
    data[q : q + length], data[k : k + length] = data[k : k + length], data[q : q + length]
    file.write_bytes(data)
    found = failures(plan, staged, layers=layers)
    assert "weights: changed" in found
    assert ("language: prefill" in found) == (layers is None)


@pytest.mark.parametrize("layers", [None, 2])
def test_q_and_k_outputs_are_swapped(plan: ExportPlan, staged: Path, layers: int | None) -> None:
    """Every weight is at its own node, only the wires behind them are crossed."""

    def cross(graph: Any) -> None:
        attention = node_of(graph, f"/language_model/layers.{LATE}/self_attn/Attention")
        attention.input[0], attention.input[1] = attention.input[1], attention.input[0]

    edit_graph(staged / "language_model.onnx", cross)
    found = failures(plan, staged, layers=layers)
    assert "structure: layers unlike" in found
    assert ("language: prefill" in found) == (layers is None)


def test_the_exporter_swaps_q_and_k(
    plan: ExportPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same mistake in the exporter's code, in every layer."""
    transposed = Weights.transposed

    def confused(self: Weights, g: Any, name: str) -> Any:
        swapped = {"q_proj": "k_proj", "k_proj": "q_proj"}
        parts = (
            [swapped.get(part, part) for part in name.split(".")] if name.startswith("layers.") else [name]
        )
        return transposed(self, g, ".".join(parts))

    monkeypatch.setattr(Weights, "transposed", confused)
    bundle = exported_as(plan, tmp_path)
    found = failures(plan, bundle)
    assert {"structure: weights misplaced", "language: prefill", "language: 16 decode steps"} <= found


# --- single weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("name", ["mlp.down_proj.weight.T", "self_attn.v_proj.weight.T"])
def test_one_flipped_bit(plan: ExportPlan, staged: Path, name: str, layers: int | None) -> None:
    """The lowest bit of one float of the last layer: no output would show it."""
    file, offset, length = where_is(staged, f"{DECODER}.layers.{LATE}.{name}")
    data = bytearray(file.read_bytes())
    data[offset + length // 2 // 4 * 4] ^= 1
    file.write_bytes(data)
    assert failures(plan, staged, layers=layers) == {"weights: changed"}


def test_a_small_inline_weight_changes(plan: ExportPlan, staged: Path) -> None:
    name = f"{DECODER}.layers.{LATE}.input_layernorm.weight"

    def nudge(graph: Any) -> None:
        tensor = initializer_of(graph, name)
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.0000002)).tobytes()

    edit_graph(staged / "language_model.onnx", nudge)
    assert failures(plan, staged) == {"weights: changed"}


def test_a_weight_lacks_its_transposition(plan: ExportPlan, staged: Path) -> None:
    """A square matrix fits either way."""
    file, offset, length = where_is(staged, f"{DECODER}.layers.{LATE}.self_attn.o_proj.weight.T")
    data = bytearray(file.read_bytes())
    square = np.frombuffer(bytes(data[offset : offset + length]), np.float32)
    side = int(len(square) ** 0.5)
    data[offset : offset + length] = square.reshape(side, side).T.copy().tobytes()
    file.write_bytes(data)
    assert {"weights: changed", "language: prefill"} <= failures(plan, staged)


def test_the_exporter_forgets_a_bias(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", kind="qwen2")
    plan = plan_of(folder)

    class Forgetful(Weights):
        def __contains__(self, name: str) -> bool:
            return "q_proj.bias" not in name and super().__contains__(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("divprune_edge.export.language.Weights", Forgetful)
        bundle = exported_as(plan, tmp_path)
    found = failures(plan, bundle)
    assert {"weights: missing or twice", "weights: left out", "language: prefill"} <= found


def test_a_layer_is_left_out(plan: ExportPlan, tmp_path: Path) -> None:
    short = dataclasses.replace(plan, spec=plan.spec.with_decoder(plan.spec.decoder.truncated(LATE)))
    found = failures(plan, exported_as(short, tmp_path), layers=2)
    assert {"weights: missing or twice", "weights: left out"} <= found


# --- what the config says --------------------------------------------------------------------------------------


def with_decoder(plan: ExportPlan, **changes: Any) -> ExportPlan:
    decoder = dataclasses.replace(plan.spec.decoder, **changes)
    return dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, decoder=decoder))


def with_vision(plan: ExportPlan, **changes: Any) -> ExportPlan:
    vision = dataclasses.replace(plan.spec.vision, **changes)
    return dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, vision=vision))


@pytest.mark.parametrize("state", [1, 3])
def test_feature_layer_off_by_one(plan: ExportPlan, tmp_path: Path, state: int) -> None:
    assert plan.spec.vision.feature_states == (2,)
    found = failures(plan, exported_as(with_vision(plan, feature_states=(state,)), tmp_path))
    assert {"vision: visual tokens", "vision: their direction"} <= found


def test_feature_layer_off_by_one_in_spec_and_plan(plan: ExportPlan, tmp_path: Path) -> None:
    """The reader of the config itself is wrong: the plan that verifies has the mistake, too."""
    wrong = with_vision(plan, feature_states=(1,))
    found = failures(wrong, exported_as(wrong, tmp_path))
    assert {"vision: visual tokens", "weights: left out"} <= found


@pytest.mark.parametrize("theta", [9990.0, 20000.0, 1e6])
@pytest.mark.parametrize("layers", [None, 2])
def test_wrong_rope_theta(plan: ExportPlan, tmp_path: Path, theta: float, layers: int | None) -> None:
    rope = dataclasses.replace(plan.spec.decoder.rope, theta=theta)
    wrong = with_decoder(plan, rope=rope)
    bundle = exported_as(wrong, tmp_path)
    assert "language: rotary tables" in failures(plan, bundle, layers=layers)
    assert {"language: rotary tables", "language: prefill"} <= failures(wrong, bundle, layers=layers)


def test_rope_scaling_is_ignored(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    plan = plan_of(make_checkpoint(tmp_path / "tiny", text={"rope_parameters": scaling}))
    wrong = with_decoder(plan, rope=dataclasses.replace(plan.spec.decoder.rope, kind="default"))
    found = failures(wrong, exported_as(wrong, tmp_path))
    assert {"language: rotary tables", "language: prefill"} <= found


@pytest.mark.parametrize(
    "change", [{"norm_eps": 1e-2}, {"activation": "gelu"}], ids=["epsilon of the norms", "activation"]
)
def test_wrong_decoder_setting(plan: ExportPlan, tmp_path: Path, change: dict[str, Any]) -> None:
    wrong = with_decoder(plan, **change)
    assert "language: prefill" in failures(wrong, exported_as(wrong, tmp_path))


@pytest.mark.parametrize(
    "change", [{"norm_eps": 1e-2}, {"activation": "gelu"}], ids=["epsilon", "activation"]
)
def test_wrong_vision_setting(plan: ExportPlan, tmp_path: Path, change: dict[str, Any]) -> None:
    wrong = with_vision(plan, **change)
    assert "vision: visual tokens" in failures(wrong, exported_as(wrong, tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"mean": (0.40821073, 0.4578275, 0.48145466)},
        {"std": (0.26862954, 0.26130258, 0.276)},
        {"rescale_factor": 1 / 256},
    ],
    ids=["mean", "mean of BGR", "one digit of std", "rescale"],
)
def test_wrong_image_constants(plan: ExportPlan, tmp_path: Path, change: dict[str, Any]) -> None:
    wrong = dataclasses.replace(plan, preprocessing=plan.preprocessing.model_copy(update=change))
    assert "vision: visual tokens" in failures(wrong, exported_as(wrong, tmp_path))


# --- the truncated copy ----------------------------------------------------------------------------------------


def test_the_exported_graph_ends_elsewhere_than_the_run_one(plan: ExportPlan, staged: Path) -> None:
    """The output head skips the last layer: nobody can see it in a run of two layers."""

    def skip(graph: Any) -> None:
        node = node_of(graph, "/language_model/Add")
        for i, name in enumerate(node.input):
            node.input[i] = name.replace(f"layers.{LATE}", f"layers.{LATE - 1}")

    edit_graph(staged / "language_model.onnx", skip)
    assert failures(plan, staged, layers=2) == {"structure: unlike what was run"}


def test_a_late_layer_reads_from_two_layers_before(plan: ExportPlan, staged: Path) -> None:
    def skip(graph: Any) -> None:
        before = f"/language_model/layers.{LATE - 1}/"
        for node in graph.node:
            if node.name.startswith(f"/language_model/layers.{LATE}/"):
                for i, name in enumerate(node.input):
                    if name.startswith(before):
                        node.input[i] = name.replace(f"layers.{LATE - 1}", f"layers.{LATE - 2}")

    edit_graph(staged / "language_model.onnx", skip)
    assert "structure: layers unlike" in failures(plan, staged, layers=2)


def test_fp16_passes_and_sees_a_flipped_bit(plan: ExportPlan, tmp_path: Path) -> None:
    plan = plan_of(plan.checkpoint.folder, precision="fp16")
    folder = exported_as(plan, tmp_path)
    assert failures(plan, folder) == set()
    file, offset, _ = where_is(folder, f"{DECODER}.layers.{LATE}.mlp.up_proj.weight.T")
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)
    assert failures(plan, folder) == {"weights: changed"}
