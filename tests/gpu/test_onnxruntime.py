"""The operators of ONNX Runtime on its CUDA provider, against the reference and against the functions in the files.

They need onnxruntime-gpu, and operators built with nvcc: ``python -m plugins build --onnxruntime-include DIR``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from selection_cases import DTYPES, Case, assert_max_min, ragged, random_tokens, special_cases

from divprune_edge.export.selector import build_selector
from divprune_edge.export.writer import write_graph
from divprune_edge.manifest import TensorInfo
from divprune_edge.models.selectors import find_selector
from divprune_edge.plugins.loader import Library, find_operators

ort = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

CUDA = "CUDAExecutionProvider"
ONNX_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": 16}


@pytest.fixture(scope="module")
def operators() -> Library:
    if CUDA not in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    found = find_operators()
    if found is None or found.record.cuda is None:
        pytest.skip("the operators are not built for CUDA")
    return found


def open_session(folder: Path, name: str, case: Case, operators: Library | None) -> Any:
    """A selector's session on the GPU, profiled."""
    selector, (_, rows, width) = find_selector(name), case.tokens.shape
    signals = [TensorInfo(name=s, dtype="float32", shape=["batch", rows]) for s in selector.signals]
    graph = build_selector(selector, rows, case.keep, width, case.tokens.dtype.name, signals=signals)
    write_graph(graph, folder, "selector.onnx")
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    if operators is not None:
        options.register_custom_ops_library(str(operators.path))
    providers = [(CUDA, {"use_tf32": "0"}), "CPUExecutionProvider"]
    session = ort.InferenceSession(str(folder / "selector.onnx"), options, providers=providers)
    assert session.get_providers()[0] == CUDA
    return session


def select(
    session: Any, case: Case, **signals: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Everything is bound on the device: what a pipeline does."""
    raw = case.tokens.view(np.int16) if case.tokens.dtype.name == "bfloat16" else case.tokens
    tensors = {"visual_tokens": raw, "valid": case.valid, **signals}
    on_device = {name: torch.from_numpy(array.copy()).cuda() for name, array in tensors.items()}
    binding = session.io_binding()
    for name, tensor in on_device.items():
        element = ONNX_TYPES[case.tokens.dtype.name] if name == "visual_tokens" else tensors[name].dtype.type
        binding.bind_input(name, "cuda", 0, element, tuple(tensor.shape), tensor.data_ptr())
    kept = torch.zeros(
        (len(raw), case.keep, raw.shape[2]), dtype=on_device["visual_tokens"].dtype, device="cuda"
    )
    element = ONNX_TYPES[case.tokens.dtype.name]
    binding.bind_output("kept_tokens", "cuda", 0, element, tuple(kept.shape), kept.data_ptr())
    binding.bind_output("kept_indices", "cuda")
    torch.cuda.synchronize()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return kept.cpu().numpy().view(case.tokens.dtype), binding.get_outputs()[1].numpy()


def placed(session: Any) -> dict[str, str]:
    """The provider of each type of node that ran."""
    events = json.loads(Path(session.end_profiling()).read_text())
    found = [event["args"] for event in events if "op_name" in event.get("args", {})]
    return {one["op_name"]: one.get("provider", "") for one in found}


# A budget of all tokens has no node.
NODES = [c for dtype in DTYPES for c in special_cases(dtype) if c.keep < c.tokens.shape[1]]


@pytest.mark.parametrize("case", NODES, ids=str)
def test_special_cases(operators: Library, tmp_path: Path, case: Case) -> None:
    assert_max_min(case, *select(open_session(tmp_path, "divprune", case, operators), case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keep", "width"), [(576, 58, 4096), (2880, 288, 4096), (8765, 876, 3584)])
def test_sizes_of_real_models(
    operators: Library, tmp_path: Path, rows: int, keep: int, width: int, dtype: str
) -> None:
    case = Case("real", random_tokens(rows, (1, rows, width), dtype), np.ones((1, rows), np.bool_), keep)
    session = open_session(tmp_path, "divprune", case, operators)
    first = select(session, case)
    assert_max_min(case, *first)
    assert np.array_equal(select(session, case)[1], first[1]), "the same every time"
    assert placed(session)["MaxMinDiversity"] == CUDA


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_sum_rule_as_the_function_has_it(operators: Library, tmp_path: Path, dtype: str) -> None:
    """Whole numbers, whose sums are exact: both start where the attention is largest and go on alike."""
    rng = np.random.default_rng(4)
    tokens = rng.integers(-2, 3, (3, 300, 64)).astype(DTYPES[dtype])
    case = Case("sum", tokens, ragged(4, 3, 300, 30), 30)
    attention = rng.integers(0, 9, (3, 300)).astype(np.float32)
    served = open_session(tmp_path, "todre", case, operators)
    ours = select(served, case, cls_attention=attention)
    assert placed(served)["MinSumSimilarity"] == CUDA
    function = open_session(tmp_path, "todre", case, None)
    assert np.array_equal(ours[1], select(function, case, cls_attention=attention)[1])
