"""What a GPU computes never waits for arithmetic of shapes on the host: ONNX Runtime copies it there in every run.

ONNX Runtime keeps the outputs of ``Shape`` and what follows from them alone on the host, whatever kernels CUDA has, and
refuses to capture a CUDA graph of a session with such a copy. What it does with them was read off its own partitioner;
here the same is said of the graphs, for any version.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from exporting import export, plan_of

from divprune_edge.models.demo import CHECKPOINT, QWEN_CHECKPOINT

ON_HOST: dict[str, Callable[[int], bool]] = {
    **dict.fromkeys(("Range", "ConstantOfShape"), lambda at: True),
    **dict.fromkeys(
        ("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "TopK"), lambda at: at == 1
    ),
    **dict.fromkeys(("Slice", "Pad", "Resize"), lambda at: at >= 1),
    "GroupQueryAttention": lambda at: at == 6,
}
"""Which inputs CUDA kernels read on the host, where they read any there."""


def copied(graph: Any) -> list[str]:
    """Return which nodes of a graph compute on a GPU with numbers of the host."""
    known = {tensor.name for tensor in graph.initializer}
    known |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    host: set[str] = set()
    found = []
    for node in graph.node:
        reads = ON_HOST.get(node.op_type, lambda at: False)
        computed = {name for at, name in enumerate(node.input) if name and not reads(at)}
        if node.op_type in ("Shape", "Size") or (host & computed and computed <= host | known):
            host.update(node.output)
        elif host & computed:
            found.append(node.name)
    return found


def test_it_finds_one() -> None:
    """The bound that the token table once had."""
    i64 = onnx.TensorProto.INT64
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Shape", ["visual"], ["shape"], name="Shape"),
            make("Sub", ["shape", "one"], ["last"], name="Sub"),
            make("Reshape", ["visual", "shape"], ["same"], name="Reshape"),
            make("Min", ["ids", "last"], ["rows"], name="Min"),
        ],
        "graph",
        [onnx.helper.make_tensor_value_info(name, i64, [None]) for name in ("ids", "visual")],
        [onnx.helper.make_tensor_value_info("rows", i64, [None])],
        [onnx.helper.make_tensor("one", i64, [1], [1])],
    )
    assert copied(graph) == ["Min"]


@pytest.fixture
def checkpoint_of(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    demos = {"demo": CHECKPOINT, "demo, Qwen": QWEN_CHECKPOINT}
    return lambda name: demos[name] if name in demos else checkpoint(name)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize(
    ("name", "dialect", "precision"),
    [
        *((name, "portable", "fp16") for name in ("plain", "mistral, sliding window", "demo", "demo, Qwen")),
        *(("demo", "onnxruntime", precision) for precision in ("fp16", "vision=fp16,language=int4")),
        ("demo, Qwen", "onnxruntime", "fp16"),
    ],
)
def test_no_graph_for_cuda_computes_with_shapes(
    checkpoint_of: Callable[[str], Path],
    name: str,
    dialect: str,
    precision: str,
    greedy: bool,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"precision": precision, "dialect": dialect, "greedy": greedy, "target": "cuda"}
    if "Qwen" in name and dialect == "onnxruntime":
        options["numbering"] = "compact"
    made = export(plan_of(checkpoint_of(name), 9, **options), tmp_path / "bundle")
    for file in ("vision_encoder.onnx", "language_model.onnx"):
        model = onnx.load(made.folder / file, load_external_data=False)
        assert copied(model.graph) == [], file
