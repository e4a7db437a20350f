"""Small vision towers of Qwen2.5-VL and Qwen3-VL: by transformers, and as the graph of the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from divprune_edge.export.checkpoint import Checkpoint
from divprune_edge.export.formats import Format, find_format
from divprune_edge.export.graph import GraphBuilder
from divprune_edge.export.layers.layer_builder import LayerBuilder
from divprune_edge.export.weights import Weights
from divprune_edge.manifest import VISUAL_TOKENS, Patches, Preprocessing
from divprune_edge.models.families.qwen_vl.encoder import write_qwen_encoder
from divprune_edge.models.families.qwen_vl.inputs import encoder_inputs
from divprune_edge.models.families.qwen_vl.spec import QwenVisionSpec, read_qwen_vision
from divprune_edge.processing.patches import grid_inputs

PREFIX = "visual."
OPSET = 20
QWEN3: dict[str, Any] = {
    "model_type": "qwen3_vl_vision",
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 24,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 1],
}
QWEN2_5: dict[str, Any] = {
    "model_type": "qwen2_5_vl_vision",
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 24,
    "window_size": 32,
    "fullatt_block_indexes": [1],
}


def reference_tower(config: Mapping[str, Any], seed: int = 0) -> Any:
    """Return transformers' own tower with weights that are nowhere trivial."""
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

    kind = config["model_type"]
    sizes = {name: value for name, value in config.items() if name != "model_type"}
    classes = {
        "qwen3_vl_vision": Qwen3VLVisionModel,
        "qwen2_5_vl_vision": Qwen2_5_VisionTransformerPretrainedModel,
    }
    whole = CONFIG_MAPPING[kind.removesuffix("_vision")](vision_config={"model_type": kind, **sizes})
    torch.manual_seed(seed)
    tower = classes[kind](whole.vision_config).float().eval()
    for name, parameter in tower.named_parameters():
        spread = 0.2 if parameter.ndim == 1 else 1.5 * parameter[0].numel() ** -0.5
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = torch.randn_like(parameter) * spread + (1 if is_scale else 0)
    return tower


def facts_of(spec: QwenVisionSpec) -> Preprocessing:
    return Preprocessing(
        resize="area",
        resample=3,
        rescale_factor=1 / 255,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        patches=Patches(
            patch=spec.patch,
            merge=spec.merge,
            temporal=spec.temporal,
            min_pixels=1,
            max_pixels=1 << 20,
            places=spec.side,
            window=spec.window,
        ),
    )


def write_tower(folder: Path, config: Mapping[str, Any], tower: Any, format: Format | None = None) -> Path:
    """Write the graph of a tower's weights and return its file."""
    from safetensors.torch import save_file

    format = format or find_format("fp32", 32)
    folder.mkdir(exist_ok=True)
    save_file(
        {PREFIX + k: v.contiguous() for k, v in tower.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"vision_config": dict(config)}))
    spec = read_qwen_vision(config, "qwen3_vl")
    with Checkpoint(folder, "tower") as checkpoint:
        checkpoint.check({PREFIX + name: shape for name, shape in spec.parameters().items()})
        g = GraphBuilder("vision_encoder")
        inputs = {name: g.input(name, *declared) for name, declared in encoder_inputs(spec).items()}
        layers = LayerBuilder(g, Weights(checkpoint, PREFIX, format))
        values = write_qwen_encoder(g, layers, inputs, spec, facts_of(spec))
        assert set(values) == {VISUAL_TOKENS, *spec.beside}
        for name in (VISUAL_TOKENS, *spec.beside):
            g.output(values[name], name, format.dtype, ["frames", "rows", spec.width])
        ir.save(g.model(max(OPSET, format.opset), domains=format.domains), folder / "vision_encoder.onnx")
    return folder / "vision_encoder.onnx"


def some_pixels(spec: QwenVisionSpec, grid: tuple[int, int], frames: int) -> np.ndarray:
    shape = frames, grid[0] * grid[1], spec.patch_values
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def run_graph(path: Path, spec: QwenVisionSpec, grid: tuple[int, int], frames: int = 1) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    patches = facts_of(spec).patches
    assert patches is not None
    outputs: list[np.ndarray] = session.run(
        None, {"pixels": some_pixels(spec, grid, frames), **grid_inputs(grid, patches)}
    )
    return outputs


def run_reference(
    tower: Any, spec: QwenVisionSpec, grid: tuple[int, int], frames: int = 1
) -> list[np.ndarray]:
    """Return what transformers makes of the same pixels: visual tokens and what is beside them."""
    import torch

    facts = facts_of(spec)
    mean, std = (np.repeat(values, spec.patch_values // 3) for values in (facts.mean, facts.std))
    pixels = (some_pixels(spec, grid, frames) * facts.rescale_factor - mean) / std
    with torch.no_grad():
        made = tower(
            torch.tensor(pixels, dtype=torch.float32).flatten(0, 1), grid_thw=torch.tensor([[frames, *grid]])
        )
    features: Sequence[Any] = getattr(made, "deepstack_features", None) or []
    return [x.numpy().reshape(frames, -1, spec.width) for x in (made.pooler_output, *features)]
