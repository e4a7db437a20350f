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
    """Compile the very sources of the plugin against the emulator."""
    library = folder / f"libdivprune_emulated_{architecture}.so"
    return _emulate(library, [SOURCE / name for name in _KERNELS], architecture)


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
        [*sources, EMULATOR / "emulator.cpp"],
        "-x",
        "c++",
        "-O2",
        "-shared",
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
        f"-I{SOURCE}",
        *flags,
    )


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


def problem_of(case: Case, matrix_budget: int = 0) -> abi.Problem:
    batch, rows, width = case.tokens.shape
    return abi.Problem(batch, rows, width, case.keep, abi.DTYPES[case.tokens.dtype.name], 0, matrix_budget)


def garbage(size: int) -> npt.NDArray[np.uint8]:
    """Workspace as it comes from an allocator: nothing may rely on what is in it."""
    return aligned(np.full(size, 0xFF, np.uint8))


def emulate(
    library: ctypes.CDLL, case: Case, seeds: npt.NDArray[np.int64] | None = None, matrix_budget: int = 0
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Run a selection in host memory: max-min, or the sum rule from ``seeds`` [B]."""
    problem = problem_of(case, matrix_budget)
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


def write_library(folder: Path, library: str = LIBRARY, **changes: object) -> Path:
    """Write a file that is no library with a record that fits it, except for ``changes``."""
    (folder / library).write_bytes(b"not a library")
    record = dataclasses.replace(RECORDED, sha256=sha256(folder / library))
    dataclasses.replace(record, **changes).write(folder, library)  # type: ignore[arg-type]
    return folder
