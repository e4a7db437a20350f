"""Compiling the plugin's sources for the CPU and running a selection with the result; a made-up library."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from selection_cases import Case

from divprune_edge import __version__
from divprune_edge.plugins import abi
from divprune_edge.plugins.record import ABI_VERSION, LIBRARY, LibraryRecord, sha256
from divprune_edge.plugins.toolchain import (
    ONNXRUNTIME_VARIABLE,
    TENSORRT_VARIABLE,
    Headers,
    OnnxRuntimeHeaders,
    find_headers,
    find_onnxruntime,
)

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "plugins" / "csrc"
EMULATOR = ROOT / "tests" / "plugins" / "emulator"
# The emulator stands in for a GPU of this __CUDA_ARCH__: with and without the instructions of sm_80, and with clusters.
EMULATED = (800, 750, 900)
RECORDED = LibraryRecord(__version__, ABI_VERSION, "", (87,), "13.0", "10.16.0")


def need(tool: str) -> str:
    """Return the path of a program, or skip the test and say what is missing."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def need_headers() -> Headers:
    """Return TensorRT's headers, or skip the test: nothing else brings them."""
    headers = find_headers(None)
    if headers is None:
        pytest.skip(f"unproven: no TensorRT headers ({TENSORRT_VARIABLE})")
    return headers


def need_onnxruntime() -> OnnxRuntimeHeaders:
    """Return ONNX Runtime's header, or skip the test: no package of Python's brings it."""
    headers = find_onnxruntime(None)
    if headers is None:
        pytest.skip(f"unproven: no header of ONNX Runtime ({ONNXRUNTIME_VARIABLE})")
    return headers


def need_rtx() -> None:
    """Skip the test where TensorRT-RTX is not installed; only x86-64 has it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("unproven: no TensorRT-RTX (pip install tensorrt-rtx-cu13)")


def compile_cpp(output: Path, sources: list[Path], *flags: str) -> Path:
    """Compile and link with g++; warnings are errors."""
    command = [need("g++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(output)]
    result = subprocess.run([*command, *map(str, sources)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return output


_KERNELS = ("append_rows.cu", "max_min.cu", "plan.cpp", "status.cpp")


def compile_emulated(folder: Path, architecture: int) -> Path:
    """Compile the very sources of the plugin against the emulator; for sm_90 with what only that has."""
    library = folder / f"libdivprune_emulated_{architecture}.so"
    names, flags = (
        (_KERNELS, []) if architecture != 900 else ((*_KERNELS, "hopper.cu"), ["-DDIVPRUNE_HOPPER"])
    )
    return _emulate(library, [SOURCE / name for name in names], architecture, *flags)


def compile_hopper(output: Path, sources: list[Path], include: Path, *flags: str) -> Path:
    """Compile sources against the emulator of sm_90, with the headers of ``include``."""
    return compile_cpp(output, sources, *emulation_flags(900), "-DDIVPRUNE_HOPPER", f"-I{include}", *flags)


def plain(library: ctypes.CDLL) -> ctypes.CDLL:
    """The emulator at its plain schedule, on the device of 132 multiprocessors, no kernel counted."""
    library.divprune_emulator_schedule(0)
    library.divprune_emulator_device(0)
    library.divprune_emulator_launches()
    return library


def compile_emulated_operators(folder: Path, headers: OnnxRuntimeHeaders) -> Path:
    """Compile ONNX Runtime's operators with the kernels for CUDA, emulated, which then run as kernels of its CPU."""
    names = (*_KERNELS, "onnxruntime/cuda.cpp", "onnxruntime/operator.cpp", "onnxruntime/seeds.cu")
    sources = [*(SOURCE / name for name in names), ROOT / "tests" / "plugins" / "operators_emulated.cpp"]
    return _emulate(
        folder / "liboperators_emulated.so", sources, EMULATED[0], "-isystem", str(headers.folder)
    )


def _emulate(library: Path, sources: list[Path], architecture: int, *flags: str) -> Path:
    return compile_cpp(
        library,
        [*sources, *EMULATOR.glob("*.cpp")],
        *emulation_flags(architecture),
        "-shared",
        f"-I{SOURCE}",
        *flags,
    )


def emulation_flags(architecture: int) -> list[str]:
    """The compiler's options for the emulator, and for what it runs."""
    return [
        "-x",
        "c++",
        "-O2",
        "-fPIC",
        "-fno-extern-tls-init",
        # Libraries of one process share no variables, and one library's shared memory is in one piece.
        "-fno-gnu-unique",
        "-Wno-unknown-pragmas",
        "-Wno-clobbered",
        # Jumping between stacks is what fibers do; the fortified longjmp would refuse it.
        "-U_FORTIFY_SOURCE",
        f"-D__CUDA_ARCH__={architecture}",
        f"-I{EMULATOR}",
    ]


def compile_cpu(folder: Path) -> Path:
    """Compile the selection on the CPU with the compiler's options that the build gives each file."""
    options = {"avx2.cpp": ["-mavx2", "-mfma"], "avx512.cpp": ["-mavx512f", "-mfma"]}
    names = ["baseline.cpp", "instructions.cpp", "max_min.cpp"]
    names += list(options) if platform.machine() == "x86_64" else []
    objects = [
        compile_cpp(
            folder / f"{name}.o", [SOURCE / "cpu" / name], "-c", "-O3", "-fPIC", *options.get(name, [])
        )
        for name in names
    ]
    host = ROOT / "tests" / "plugins" / "cpu_host.cpp"
    return compile_cpp(
        folder / "libcpu.so", [host, *objects], "-shared", "-fPIC", "-O1", "-pthread", f"-I{SOURCE}"
    )


def aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy that starts on 16 bytes, as device memory does."""
    raw = np.empty(array.nbytes + 16, np.uint8)
    start = -raw.ctypes.data % 16
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def problem_of(case: Case, matrix_budget: int = 0, product: str = "tuned") -> abi.Problem:
    batch, rows, width = case.tokens.shape
    dtype = abi.DTYPES[case.tokens.dtype.name]
    return abi.Problem(batch, rows, width, case.keep, dtype, abi.PRODUCTS[product], matrix_budget)


def garbage(size: int) -> npt.NDArray[np.uint8]:
    """Workspace as it comes from an allocator: nothing may rely on what is in it."""
    return aligned(np.full(size, 0xFF, np.uint8))


def emulate(
    library: ctypes.CDLL,
    case: Case,
    seeds: npt.NDArray[np.int64] | None = None,
    matrix_budget: int = 0,
    product: str = "tuned",
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Run a selection in host memory: max-min, or the sum rule from ``seeds`` [B]."""
    problem = problem_of(case, matrix_budget, product)
    workspace = garbage(abi.workspace_bytes(library, problem))
    tokens, valid = aligned(case.tokens), np.ascontiguousarray(case.valid)
    batch, _, width = case.tokens.shape
    kept = aligned(np.zeros((batch, case.keep, width), case.tokens.dtype))
    indices = np.full((batch, case.keep), -1, np.int64)
    outputs = (kept.ctypes.data, indices.ctypes.data, workspace.ctypes.data, workspace.size, None)
    if seeds is None:
        status = library.divprune_max_min(problem, tokens.ctypes.data, valid.ctypes.data, *outputs)
    else:
        status = library.divprune_min_sum(
            problem, tokens.ctypes.data, valid.ctypes.data, seeds.ctypes.data, *outputs
        )
    abi.check(library, status)
    return kept, indices


def distances(library: ctypes.CDLL, case: Case, product: str = "tuned") -> npt.NDArray[np.float32]:
    """Return the distances [B, N, N] of all pairs, computed in host memory."""
    batch, rows, _ = case.tokens.shape
    problem = problem_of(case, product=product)
    tokens, workspace = aligned(case.tokens), garbage(abi.workspace_bytes(library, problem))
    matrix = np.full((batch, rows, rows), np.nan, np.float32)
    status = library.divprune_distances(
        problem, tokens.ctypes.data, matrix.ctypes.data, workspace.ctypes.data, workspace.size, None
    )
    abi.check(library, status)
    return matrix


def write_library(folder: Path, library: str = LIBRARY, **changes: object) -> Path:
    """Write a file that is no library with a record that fits it, except for ``changes``."""
    (folder / library).write_bytes(b"not a library")
    record = dataclasses.replace(RECORDED, sha256=sha256(folder / library))
    dataclasses.replace(record, **changes).write(folder, library)  # type: ignore[arg-type]
    return folder
