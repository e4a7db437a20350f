"""The three files of a bundle as files: valid ONNX, external weights, names that read like the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from conftest import run_code
from exporting import Bundle

FILES = ("vision_encoder.onnx", "language_model.onnx", "selectors/divprune-9.onnx")


@pytest.mark.parametrize("name", ["plain", "qwen2 tied", "two feature layers, full strategy"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_graphs_pass_the_checker(name: str, precision: str, bundle: Callable[..., Bundle]) -> None:
    exported = bundle(name, precision)
    for file in FILES:
        onnx.checker.check_model(str(exported.folder / file), full_check=True)


def test_weights_are_external_and_inside_the_folder(bundle: Callable[[], Bundle]) -> None:
    """Protobuf ends at 2 GB: no file may hold its weights itself, whatever the size."""
    exported = bundle()
    for file in FILES[:2]:
        model = onnx.load(exported.folder / file, load_external_data=False)
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            assert size <= 1024, f"{tensor.name} lies inline with {size} bytes"
            for entry in tensor.external_data:
                if entry.key == "location":
                    assert entry.value == f"{Path(file).stem}.data"
        assert (exported.folder / file).stat().st_size < 200_000
        assert model.ir_version <= 10
    assert [graph.data for graph in (exported.manifest.vision_encoder, exported.manifest.language_model)] == [
        ("vision_encoder.data",),
        ("language_model.data",),
    ]


def test_nodes_are_named_after_modules(bundle: Callable[[str], Bundle]) -> None:
    exported = bundle("qwen2")
    language = onnx.load(exported.folder / "language_model.onnx", load_external_data=False).graph
    names = [node.name for node in language.node]
    assert len(set(names)) == len(names)
    for expected in (
        "/language_model/embed_tokens/Gather",
        "/language_model/layers.0/input_layernorm/RMSNormalization",
        "/language_model/layers.2/self_attn/q_proj/MatMul",
        "/language_model/layers.2/self_attn/q_proj/Add",
        "/language_model/layers.2/mlp/down_proj/MatMul",
        "/language_model/norm/RMSNormalization",
        "/lm_head/Gemm",
    ):
        assert expected in names
    vision = onnx.load(exported.folder / "vision_encoder.onnx", load_external_data=False).graph
    names = [node.name for node in vision.node]
    assert names[0].endswith("/Cast"), "uint8 leaves the graph's first node"
    for expected in (
        "/vision_tower/embeddings/patch_embedding/Conv",
        "/vision_tower/encoder/layers.1/self_attn/out_proj/MatMul",
        "/multi_modal_projector/linear_2/MatMul",
    ):
        assert expected in names
    assert not any(re.search(r"encoder/layers\.2/", name) for name in names), (
        "feature -2 of 3 needs two layers"
    )


def test_tied_embeddings_are_stored_once(bundle: Callable[[str], Bundle]) -> None:
    exported = bundle("tied embeddings")
    graph = onnx.load(exported.folder / "language_model.onnx", load_external_data=False).graph
    weights = [tensor.name for tensor in graph.initializer if tensor.name.endswith("weight")]
    tables = [name for name in weights if "embed_tokens" in name or "lm_head" in name]
    assert tables == ["model.language_model.embed_tokens.weight"]
    readers = {node.name for node in graph.node if tables[0] in node.input}
    assert readers == {"/language_model/embed_tokens/Gather", "/lm_head/Gemm"}


def test_names_and_shapes_are_the_contract(bundle: Callable[[], Bundle]) -> None:
    manifest = bundle().manifest
    vision, language, selector = manifest.vision_encoder, manifest.language_model, manifest.selectors[0]
    assert [(t.name, t.dtype, t.shape) for t in vision.inputs] == [("pixels", "uint8", ("tiles", 35, 35, 3))]
    assert [(t.name, t.dtype, t.shape) for t in vision.outputs] == [
        ("visual_tokens", "float32", ("tiles", 25, 40))
    ]
    assert [t.name for t in selector.inputs] == ["visual_tokens", "valid"]
    assert [t.name for t in language.inputs][:5] == [
        "input_ids",
        "visual_tokens",
        "logits_index",
        "attention_mask",
        "position_ids",
    ]
    assert (language.outputs[0].name, language.outputs[0].dtype) == ("logits", "float32")
    assert language.outputs[0].shape == ("batch", language.vocabulary)
    assert manifest.default_selector == "divprune-9"


def test_exporting_needs_no_torch(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from divprune_edge.export.cli import app\n"
        "from divprune_edge.console import run\n"
        "try:\n"
        f"    run(app, ['llava', '--model', {str(checkpoint('plain'))!r}, '--no-verify',"
        f" '--output', {str(tmp_path / 'bundle')!r}], program='export')\n"
        "except SystemExit as end:\n"
        "    heavy = {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    run_code(code)
