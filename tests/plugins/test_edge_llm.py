"""The pruner for TensorRT Edge-LLM: spans on the CPU; with a checkout, its headers, its registry and its base class.

Edge-LLM counts what a span keeps, so how it counts is seen only where its own source is at hand.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from ctypes import c_char_p, c_float, c_int32, c_void_p, create_string_buffer
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import run_module
from plugins_emulation import EMULATED, SOURCE, aligned, compile_cpp, compile_emulated, need, need_headers
from raising import assert_told, refused
from selection_cases import Case, assert_max_min, random_tokens

from divprune_edge.plugins.build import build
from divprune_edge.plugins.loader import find_library
from divprune_edge.plugins.record import EDGE_LLM_OBJECT
from divprune_edge.plugins.toolchain import (
    EDGE_LLM_HEADER,
    EDGE_LLM_JSON,
    EDGE_LLM_VARIABLE,
    Compiler,
    Headers,
    find_compiler,
    find_edge_llm,
)

pytestmark = pytest.mark.xdist_group("edge_llm")
HERE = Path(__file__).resolve().parent / "edge_llm"
CUDA_INCLUDE = "/usr/local/cuda/include"
TEXT, IMAGE = 1, 7
WIDTH = 48
# Lengths of text, image, text, …: one image; odd ones of several sizes; a clip of frames; an image of one token.
PROMPTS = {
    "one": (5, 61, 9),
    "several": (3, 40, 2, 17, 1, 96, 4),
    "ends": (0, 33, 1, 21, 0),
    "frames": (2, *(12, 3) * 6),
    "single": (4, 1, 2, 30, 1),
}
RATIOS = (0.25, 0.5, 0.9)


def ids_of(prompt: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """Token ids [length] of a prompt that starts with text."""
    return np.repeat([(TEXT, IMAGE)[part % 2] for part in range(len(prompt))], prompt).astype(np.int32)


def spans_of(ids: npt.NDArray[np.int32], ratio: float) -> list[tuple[int, int, int]]:
    """First row, row after the last, and how many are kept, of each image."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ids == IMAGE, [0]])))
    share = 1 - float(np.float32(ratio))
    return [(int(b), int(e), max(1, math.ceil((e - b) * share))) for b, e in edges.reshape(-1, 2)]


def assert_divprune(
    tokens: npt.NDArray[np.float16], spans: list[tuple[int, int, int]], kept: npt.NDArray[np.int32]
) -> None:
    """Each span keeps as many as it should, and those that max-min picks from it alone."""
    assert len(kept) == sum(keep for *_, keep in spans)
    for begin, end, keep in spans:
        chosen = kept[(begin <= kept) & (kept < end)].astype(np.int64) - begin
        span = tokens[None, begin:end]
        case = Case("span", span, np.ones(span.shape[:2], np.bool_), keep)
        assert_max_min(case, span[:, chosen], chosen[None])


@pytest.fixture(scope="module")
def emulated_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_emulated(tmp_path_factory.mktemp("kernels"), EMULATED[0])


def compile_host(folder: Path, sources: list[Path], kernels: Path, *flags: str) -> ctypes.CDLL:
    linked = ("-shared", "-fPIC", "-O1", *flags, f"-I{SOURCE}", f"-Wl,-rpath,{kernels.parent}")
    return ctypes.CDLL(str(compile_cpp(folder / "libhost.so", [*sources, kernels], *linked)))


@pytest.fixture(scope="module")
def spans_library(tmp_path_factory: pytest.TempPathFactory, emulated_kernels: Path) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("spans")
    return compile_host(folder, [HERE / "spans_host.cpp"], emulated_kernels)


def select(
    library: ctypes.CDLL, tokens: npt.NDArray[np.float16], spans: list[tuple[int, int, int]]
) -> npt.NDArray[np.int32] | str:
    """Positions that are kept, or what is wrong."""
    held = aligned(tokens)
    table = np.array(spans, np.int32).reshape(-1, 3)
    kept = np.empty(len(tokens), np.int32)
    error = create_string_buffer(256)
    longest = max(end - begin for begin, end, _ in spans)
    count = library.select_in_spans(
        c_void_p(held.ctypes.data),
        tokens.shape[1],
        c_void_p(table.ctypes.data),
        len(spans),
        longest,
        c_void_p(kept.ctypes.data),
        error,
    )
    return error.value.decode() if count < 0 else kept[:count]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", PROMPTS)
def test_each_span_is_selected_by_itself(spans_library: ctypes.CDLL, name: str, ratio: float) -> None:
    ids = ids_of(PROMPTS[name])
    tokens = random_tokens(50, (1, len(ids), WIDTH), "float16")[0]
    spans = spans_of(ids, ratio)
    kept = select(spans_library, tokens, spans)
    assert not isinstance(kept, str), kept
    assert np.all(np.diff(kept) > 0)
    assert_divprune(tokens, spans, kept)


def test_what_the_kernels_refuse_is_said(spans_library: ctypes.CDLL) -> None:
    tokens = random_tokens(51, (1, 20, 12), "float16")[0]
    assert "a multiple of 8" in str(select(spans_library, tokens, [(2, 12, 3)]))
    tokens = random_tokens(51, (1, 20, 16), "float16")[0]
    assert "number of kept tokens" in str(select(spans_library, tokens, [(2, 12, 3), (14, 18, 5)]))


# --- Finding a checkout ---------------------------------------------------------------------------------------------


def write_checkout(folder: Path) -> Path:
    for path in (EDGE_LLM_HEADER, Path("cpp") / "common" / "version.h"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text('inline constexpr char const* kRUNTIME_VERSION = "0.10.1";\n')
    (folder / EDGE_LLM_JSON).mkdir(parents=True)
    return folder


def test_a_checkout_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(EDGE_LLM_VARIABLE, raising=False)
    assert find_edge_llm(None) is None
    checkout = write_checkout(tmp_path / "edge")
    assert find_edge_llm(checkout) == Headers(checkout, "0.10.1")
    monkeypatch.setenv(EDGE_LLM_VARIABLE, str(checkout))
    assert find_edge_llm(None) == Headers(checkout, "0.10.1")
    (checkout / EDGE_LLM_JSON).rmdir()
    with refused("edge-llm-incomplete", "git submodule update --init"):
        find_edge_llm(None)
    (checkout / "cpp" / "common" / "version.h").write_text("nothing\n")
    with refused("edge-llm-missing", "0.10.1 or newer"):
        find_edge_llm(None)


def test_it_needs_the_headers_of_tensorrt(tmp_path: Path) -> None:
    checkout = Headers(write_checkout(tmp_path / "edge"), "0.10.1")
    with refused("edge-llm-without-tensorrt", "--tensorrt-include"):
        build(Compiler(Path("/nvcc"), "13.0", (87,)), None, (87,), tmp_path / "out", edge_llm=checkout)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    need("nvcc")
    result = run_module("plugins", "build", "--edge-llm", str(tmp_path), "--output", str(tmp_path / "o"))
    assert_told(result.returncode, result.stderr, "edge-llm-missing", tmp_path)


# --- With a checkout ------------------------------------------------------------------------------------------------


def need_edge_llm() -> Headers:
    """Return the checkout, or skip the test: nothing else brings it."""
    checkout = find_edge_llm(None)
    if checkout is None:
        pytest.skip(f"unproven: no TensorRT Edge-LLM ({EDGE_LLM_VARIABLE})")
    return checkout


def include_flags(checkout: Headers) -> list[str]:
    if not Path(CUDA_INCLUDE).is_dir():
        pytest.skip(f"unproven: no CUDA headers in {CUDA_INCLUDE}")
    folders = (
        checkout.folder / "cpp",
        checkout.folder / EDGE_LLM_JSON,
        need_headers().folder,
        Path(CUDA_INCLUDE),
    )
    return [f"-isystem{folder}" for folder in folders]


def test_it_compiles_against_the_headers(tmp_path: Path) -> None:
    flags = include_flags(need_edge_llm())
    source = SOURCE / "edge_llm" / "pruner.cpp"
    made = compile_cpp(tmp_path / "pruner.o", [source], "-c", "-fvisibility=hidden", "-fPIC", *flags)
    names = subprocess.run([need("nm"), "-C", "-u", made], capture_output=True, text=True, check=True).stdout
    assert "trt_edgellm::rt::registerVisualPruner(" in names
    assert "divprune_max_min" in names


@pytest.mark.slow
def test_the_build_puts_an_object_beside_the_library(tmp_path: Path) -> None:
    checkout, headers = need_edge_llm(), need_headers()
    need("cmake")
    need("nvcc")
    build(find_compiler(), headers, (87,), tmp_path, edge_llm=checkout)
    assert find_library(tmp_path).record.edge_llm == checkout.version
    assert (tmp_path / EDGE_LLM_OBJECT).stat().st_size > 0
    result = run_module("plugins", "info", "--library", str(tmp_path))
    assert checkout.version in result.stdout


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory, emulated_kernels: Path) -> ctypes.CDLL:
    """The pruner over the checkout's own registry, base class and tensors."""
    checkout = need_edge_llm()
    names = ("tensor", "tensorUtils", "stringUtils")
    paths = ("runtime/preprocess/visualTokenPruner.cpp", *(f"common/{name}.cpp" for name in names))
    own = [checkout.folder / "cpp" / path for path in paths]
    missing = [path for path in own if not path.is_file()]
    if missing:
        pytest.skip(f"unproven: headers only, no {missing[0]}")
    sources = [SOURCE / "edge_llm" / "pruner.cpp", HERE / "runtime_host.cpp", *own]
    # As Edge-LLM builds it; and what these files have beyond the pruner's needs is left out with what that would need.
    flags = ["-fvisibility=hidden", "-ffunction-sections", "-Wl,--gc-sections", *include_flags(checkout)]
    library = compile_host(tmp_path_factory.mktemp("runtime"), sources, emulated_kernels, *flags)
    library.prune_prompt.argtypes = [c_char_p, c_float, c_void_p, *(c_int32,) * 3, *(c_void_p,) * 3]
    return library


def prune(
    runtime: ctypes.CDLL, tokens: npt.NDArray[np.float16], ids: npt.NDArray[np.int32], ratio: float, name: str
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.int32]] | str:
    """Embeddings and positions that are left, the positions of all rows of the cache; or what is wrong."""
    held = aligned(tokens)
    capacity = len(ids) + 20
    positions = np.arange(capacity, dtype=np.float32)
    error = create_string_buffer(256)
    sizes = (len(ids), tokens.shape[1], capacity)
    length = runtime.prune_prompt(
        name.encode(), ratio, ids.ctypes.data, *sizes, held.ctypes.data, positions.ctypes.data, error
    )
    assert length != -2, "deepstack features are not those of the kept tokens"
    return error.value.decode() if length < 0 else (held[:length], positions.astype(np.int32))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", PROMPTS)
def test_edge_llm_prunes_with_it(runtime: ctypes.CDLL, name: str, ratio: float) -> None:
    ids = ids_of(PROMPTS[name])
    tokens = random_tokens(52, (1, len(ids), WIDTH), "float16")[0]
    pruned = prune(runtime, tokens, ids, ratio, "divprune")
    assert not isinstance(pruned, str), pruned
    embeddings, positions = pruned
    kept = positions[: len(embeddings)]
    assert embeddings.tobytes() == tokens[kept].tobytes()
    assert np.array_equal(kept[ids[kept] == TEXT], np.flatnonzero(ids == TEXT)), "text is never pruned"
    assert_divprune(tokens, spans_of(ids, ratio), kept[ids[kept] == IMAGE])
    after = positions[len(embeddings) : len(embeddings) + 20]
    assert np.array_equal(after, np.arange(len(ids), len(ids) + 20)), (
        "answers start behind the unpruned prompt"
    )


def test_its_name_is_registered_beside_edge_llm_s_own(runtime: ctypes.CDLL) -> None:
    ids = ids_of(PROMPTS["one"])
    tokens = random_tokens(53, (1, len(ids), WIDTH), "float16")[0]
    assert "Registered: dart, divprune" in str(prune(runtime, tokens, ids, 0.5, "nothing"))


def test_a_width_that_the_kernels_do_not_take_is_refused_before_a_prompt(runtime: ctypes.CDLL) -> None:
    ids = ids_of(PROMPTS["one"])
    tokens = random_tokens(54, (1, len(ids), 12), "float16")[0]
    assert "a multiple of 8" in str(prune(runtime, tokens, ids, 0.5, "divprune"))
