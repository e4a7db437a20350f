"""The selectors' nodes in ONNX Runtime, served by our kernel: the same answers as by the functions in the files."""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from plugins_emulation import compile_emulated_operators, need, need_onnxruntime
from selection_cases import DTYPES, Case, assert_max_min, assert_well_formed, ragged, random_tokens

from divprune_edge import Pipeline
from divprune_edge.export.selector import build_selector
from divprune_edge.export.writer import write_graph
from divprune_edge.manifest import TensorInfo
from divprune_edge.models.demo import IMAGE
from divprune_edge.models.selectors import SELECTORS, find_selector
from divprune_edge.models.selectors.divprune import max_min_select
from divprune_edge.models.signals import SIGNALS
from divprune_edge.plugins.build import build
from divprune_edge.plugins.loader import OPERATORS_VARIABLE, Library, find_operators
from divprune_edge.plugins.toolchain import find_compiler

pytestmark = pytest.mark.xdist_group("operators")
ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
OURS = ("MaxMinDiversity", "MinSumSimilarity")


def write(folder: Path, name: str, rows: int, keep: int, width: int, dtype: str = "float32") -> Path:
    """Write a selector's graph."""
    selector = find_selector(name)
    shapes: dict[str, list[int]] = {signal: [rows] for signal in SIGNALS}
    shapes |= {"keys": [rows, 16], "cls_token": [1, width]}
    signals = [
        TensorInfo(
            name=signal,
            dtype=dtype if signal == "cls_token" else "float32",
            shape=["batch", *shapes[signal]],
        )
        for signal in selector.signals
    ]
    write_graph(build_selector(selector, rows, keep, width, dtype, signals=signals), folder, "selector.onnx")
    return folder / "selector.onnx"


def open_session(
    graph: Path, operators: Library | Path | None, profile: Path | None = None
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    if operators is not None:
        path = operators if isinstance(operators, Path) else operators.path
        options.register_custom_ops_library(str(path))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile / "profile")
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def run_nodes(session: ort.InferenceSession, feeds: dict[str, Any]) -> set[str]:
    """The types of the nodes that a run consisted of."""
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text())
    return {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}


def select(
    session: ort.InferenceSession, case: Case, **signals: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Run a selector on tokens of any type: NumPy's interface knows no bfloat16."""
    dtype = case.tokens.dtype.name
    raw = case.tokens.view(np.uint16) if dtype == "bfloat16" else case.tokens
    value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(raw), ONNX_TYPES[dtype])
    binding = session.io_binding()
    binding.bind_ortvalue_input("visual_tokens", value)
    for name, array in {"valid": case.valid, **signals}.items():
        binding.bind_cpu_input(name, array)
    for name in ("kept_tokens", "kept_indices"):
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    kept, indices = binding.get_outputs()
    shape = tuple(kept.shape())
    read = ctypes.string_at(kept.data_ptr(), math.prod(shape) * case.tokens.itemsize)
    return np.frombuffer(read, case.tokens.dtype).reshape(shape), indices.numpy()


def exact_case(seed: int, dtype: str) -> Case:
    """Small whole numbers, of which every sum is exact, so that ties are ties for the reference, too."""
    rng = np.random.default_rng(seed)
    batch, rows, width = (int(rng.integers(2, most)) for most in (5, 150, 200))
    keep = int(rng.integers(1, rows))
    tokens = rng.integers(-2, 3, (batch, rows, width)).astype(DTYPES[dtype])
    tokens[:, rng.random(rows) < 0.1] = 0
    return Case(f"exact-{seed}", tokens, ragged(seed, batch, rows, keep), keep)


@pytest.mark.parametrize("dtype", DTYPES)
def test_picks_are_those_of_the_reference(operators: Library, tmp_path: Path, dtype: str) -> None:
    for seed in range(12):
        case = exact_case(seed, dtype)
        _, rows, width = case.tokens.shape
        session = open_session(write(tmp_path, "divprune", rows, case.keep, width, dtype), operators)
        kept, indices = select(session, case)
        assert_well_formed(case, kept, indices)
        for tokens, valid, chosen in zip(case.tokens, case.valid, indices, strict=True):
            assert np.array_equal(chosen, max_min_select(tokens, valid, case.keep)), case


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_real_size(operators: Library, tmp_path: Path, dtype: str) -> None:
    case = Case("real", random_tokens(1, (2, 576, 1024), dtype), ragged(1, 2, 576, 300), 58)
    session = open_session(write(tmp_path, "divprune", 576, 58, 1024, dtype), operators)
    assert_max_min(case, *select(session, case))


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_answers_as_without_the_library(operators: Library, tmp_path: Path, name: str) -> None:
    """Those that have a kernel are one node of the run, the others keep the function of their file."""
    rng = np.random.default_rng(7)
    graph = write(tmp_path, name, 64, 16, 32)
    plain = open_session(graph, None, tmp_path)
    served = open_session(graph, operators, tmp_path)
    shapes = {i.name: [2, *i.shape[1:]] for i in plain.get_inputs()}
    feeds: dict[str, Any] = {key: rng.random(shape, np.float32) for key, shape in shapes.items()}
    feeds["visual_tokens"] = rng.integers(-4, 5, (2, 64, 32)).astype(np.float32)
    feeds["valid"] = rng.random((2, 64)) < 0.8
    for ours, wanted in zip(served.run(None, feeds), plain.run(None, feeds), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    kind = find_selector(name).op_type
    assert kind not in run_nodes(plain, feeds)
    nodes = run_nodes(served, feeds)
    assert (kind in nodes) == (kind in OURS)
    assert ("Loop" not in nodes) or kind not in OURS


def test_arguments_that_do_not_fit(operators: Library, tmp_path: Path) -> None:
    session = open_session(write(tmp_path, "divprune", 64, 16, 32), operators)
    for rows, valid in ((15, 15), (64, 60)):
        feeds = {"visual_tokens": np.ones((1, rows, 32), np.float32), "valid": np.ones((1, valid), np.bool_)}
        with pytest.raises(Exception, match=r"k = 16 do not fit|Got invalid dimensions"):
            session.run(None, feeds)


def test_a_bundle_answers_as_without_the_library(
    operators: Library, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for chosen in ("off", str(operators.path.parent)):
        monkeypatch.setenv(OPERATORS_VARIABLE, chosen)
        answers.append(Pipeline(demo_bundle).ask(IMAGE, "What is in the picture?"))
    assert answers[0].answer == answers[1].answer
    assert np.array_equal(answers[0].kept_indices, answers[1].kept_indices)


def test_what_is_built(operators: Library) -> None:
    record = operators.record
    assert (record.architectures, record.cuda, record.tensorrt) == ((), None, None)
    assert record.onnxruntime == need_onnxruntime().api
    command = [need("nm"), "-D", "--defined-only", operators.path]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    assert names == {"RegisterCustomOps", "divprune_abi_version", "divprune_version"}
    command = [need("readelf"), "-d", operators.path]
    needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "libonnxruntime" not in needed, "the header alone is used"
    assert "cuda" not in needed


@pytest.fixture(scope="module")
def emulated_operators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_emulated_operators(tmp_path_factory.mktemp("emulated"), need_onnxruntime())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["divprune", "todre"])
def test_the_way_to_the_kernels_of_a_gpu(
    emulated_operators: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    """Sizes, workspace, seeds and outputs as a GPU gets them, over its kernels emulated."""
    rng = np.random.default_rng(11)
    tokens = rng.integers(-2, 3, (3, 70, 40)).astype(DTYPES[dtype])
    case = Case("cuda", tokens, ragged(11, 3, 70, 12), 12)
    attention = rng.integers(0, 5, (3, 70)).astype(np.float32)
    signals = {"cls_attention": attention} if name == "todre" else {}
    session = open_session(write(tmp_path, name, 70, 12, 40, dtype), emulated_operators)
    kept, indices = select(session, case, **signals)
    assert_well_formed(case, kept, indices)
    for i, chosen in enumerate(indices):
        given = {signal: array[i] for signal, array in signals.items()}
        wanted = find_selector(name).reference(tokens[i].astype(np.float32), case.valid[i], 12, **given)
        assert np.array_equal(chosen, wanted)


def test_what_the_kernels_of_a_gpu_refuse(emulated_operators: Path, tmp_path: Path) -> None:
    session = open_session(write(tmp_path, "divprune", 64, 16, 30), emulated_operators)
    feeds = {"visual_tokens": np.ones((1, 64, 30), np.float32), "valid": np.ones((1, 64), np.bool_)}
    with pytest.raises(Exception, match="The width of a token must be a multiple of 8"):
        session.run(None, feeds)


@pytest.mark.slow
def test_operators_with_cuda(tmp_path: Path) -> None:
    """They compile, and where there is no GPU the CPU's are as good as without."""
    need("cmake")
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    build(find_compiler(), None, (87,), tmp_path, onnxruntime=need_onnxruntime())
    library = find_operators(tmp_path)
    assert library is not None
    assert library.record.cuda is not None
    case = Case("cuda", random_tokens(2, (1, 64, 32), "float32"), np.ones((1, 64), np.bool_), 16)
    session = open_session(write(tmp_path, "divprune", 64, 16, 32), library)
    assert_max_min(case, *select(session, case))
