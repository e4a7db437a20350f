"""What ONNX Runtime's own CUDA provider makes of graphs, over libraries that compute nothing: no result is looked at.

``ONNXRUNTIME_GPU_DIR`` is the folder of an unpacked wheel of onnxruntime-gpu, which is not installed beside the other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from cuda_stand_in import stand_in
from exporting import export, plan_of

from divprune_edge.models.demo import CHECKPOINT, QWEN_CHECKPOINT

WHEEL = os.environ.get("ONNXRUNTIME_GPU_DIR")

OPEN = """
import sys
wheel, graph, planned, runs = sys.argv[1:]
sys.path.insert(0, wheel)
import json
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 4
options.optimized_model_filepath = planned
cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})
session = ort.InferenceSession(graph, options, providers=[cuda, ("CPUExecutionProvider", {})])
assert session.get_providers()[0] == cuda[0]
said = []
for number in json.loads(runs):
    binding = session.io_binding()
    for bind, name in ((binding.bind_ortvalue_input, "x"), (binding.bind_ortvalue_output, "y")):
        bind(name, ort.OrtValue.ortvalue_from_shape_and_type((8, 8), np.float32, "cuda"))
    chosen = ort.RunOptions()
    chosen.add_run_config_entry("gpu_graph_id", str(number))
    try:
        session.run_with_iobinding(binding, chosen)
        said.append("")
    except Exception as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if WHEEL is None or shutil.which("gcc") is None:
        pytest.skip("unproven: no unpacked wheel of onnxruntime-gpu (ONNXRUNTIME_GPU_DIR), or no gcc")
    provider = Path(WHEEL) / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    return stand_in(provider, tmp_path_factory.mktemp("cuda"))


def planned(
    graph: Path, cuda: Path, folder: Path, runs: tuple[int, ...] = (), **more: str
) -> tuple[Counter[str], Any]:
    """Return the operators that a session which may capture runs, and what each of some runs failed of."""
    made = folder / "planned.onnx"
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(WHEEL), str(graph), str(made), json.dumps(runs)],
        env=os.environ | {"LD_LIBRARY_PATH": str(cuda), **more},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    graph_made = onnx.load(made, load_external_data=False).graph
    return Counter(node.op_type for node in graph_made.node), json.loads(done.stdout)


@pytest.mark.parametrize(
    ("checkpoint", "dialect", "precision"),
    [
        (CHECKPOINT, "onnxruntime", "fp16"),
        (CHECKPOINT, "onnxruntime", "vision=fp16,language=int4"),
        (CHECKPOINT, "portable", "fp16"),
        (QWEN_CHECKPOINT, "onnxruntime", "fp16"),
    ],
)
def test_graphs_can_be_captured(
    checkpoint: Path, dialect: str, precision: str, cuda: Path, tmp_path: Path
) -> None:
    """ONNX Runtime refuses a session that is to capture and has a copy in it."""
    numbering = {"numbering": "compact"} if checkpoint is QWEN_CHECKPOINT else {}
    options = {"precision": precision, "dialect": dialect, "target": "cuda", **numbering}
    plan = plan_of(checkpoint, 9, greedy=True, **options)
    bundle = export(plan, tmp_path / "bundle")
    for file in ("vision_encoder.onnx", "language_model.onnx"):
        found, _ = planned(bundle.folder / file, cuda, tmp_path)
        assert not any("Memcpy" in name for name in found), file
    layers = bundle.manifest.language_model.layers
    assert found["MatMulNBits"] == (7 * layers if "int4" in precision else 0)
    assert found["GroupQueryAttention"] == (layers if dialect == "onnxruntime" else 0)


def test_a_session_runs_on_after_a_capture_that_failed(cuda: Path, tmp_path: Path) -> None:
    make, one = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [make("Abs", ["x"], ["a"]), make("Neg", ["a"], ["y"])]
    values = [[one(name, onnx.TensorProto.FLOAT, ["n", 8])] for name in "xy"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "graph", *values),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "graph.onnx")
    _, said = planned(tmp_path / "graph.onnx", cuda, tmp_path, (-1, 1, -1, 2, -1, -1), CAPTURES="fail")
    assert ["CUDA failure 901" in one for one in said] == [False, True, False, True, False, False]
    assert said[2] == said[-1] == ""
