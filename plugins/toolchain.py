"""Finding what a build needs, and saying what is missing."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from divprune_edge.errors import UserError

OLDEST_ARCHITECTURE = 75
"""Turing: the first with the instructions that the kernels use."""
OLDEST_TENSORRT = 10
TENSORRT_VARIABLE = "TENSORRT_INCLUDE_DIR"
HEADER = "NvInfer.h"
EDGE_LLM_VARIABLE = "EDGE_LLM_DIR"
EDGE_LLM_HEADER = Path("cpp") / "runtime" / "preprocess" / "visualTokenPruner.h"
EDGE_LLM_JSON = Path("3rdParty") / "nlohmannJson" / "include"
OLDEST_ONNXRUNTIME = 18
"""Version of the C interface: the first that has all that the operators call (``csrc/onnxruntime/operator.h``)."""
ONNXRUNTIME_VARIABLE = "ONNXRUNTIME_INCLUDE_DIR"
ONNXRUNTIME_HEADER = "onnxruntime_c_api.h"
# JetPack and the packages of TensorRT's own repository, in this order.
_HEADER_FOLDERS = (
    "/usr/include/aarch64-linux-gnu",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include",
    "/usr/local/tensorrt/include",
    "/opt/tensorrt/include",
)
# Where its release archive's folder `include` and packages of it put the header.
_ONNXRUNTIME_FOLDERS = (
    "/usr/include/onnxruntime",
    "/usr/local/include/onnxruntime",
    "/usr/local/include",
    "/opt/onnxruntime/include",
)
_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76
"""``CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*`` of the CUDA driver."""


@dataclass(frozen=True)
class Compiler:
    """An nvcc: its path, its CUDA version, and the architectures it builds for."""

    path: Path
    version: str
    architectures: tuple[int, ...]


@dataclass(frozen=True)
class Headers:
    """A folder with TensorRT's headers, or a checkout of TensorRT Edge-LLM, and the version of what it holds."""

    folder: Path
    version: str


@dataclass(frozen=True)
class OnnxRuntimeHeaders:
    """A folder with ONNX Runtime's C interface, and the version of that."""

    folder: Path
    api: int


def has_compiler() -> bool:
    """Whether there is an nvcc, or one is named that need not be there."""
    return "CUDACXX" in os.environ or _compiler().is_file()


def _compiler() -> Path:
    return Path(os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")


def find_compiler() -> Compiler:
    """Return the nvcc of ``CUDACXX``, the path, or ``/usr/local/cuda``.

    Raises:
        UserError: there is none, or it does not run.
    """
    path = _compiler()
    if not path.is_file():
        raise UserError(
            "nvcc was not found on the path or in /usr/local/cuda: install the CUDA toolkit (JetPack: 'sudo apt "
            "install cuda-toolkit'), or name the compiler with CUDACXX=/path/to/nvcc.",
            code="compiler-missing",
        )
    version = re.search(r"release (\d+\.\d+)", _output([str(path), "--version"]))
    listed = re.findall(r"\bcompute_(\d+)$", _output([str(path), "--list-gpu-arch"]), re.MULTILINE)
    architectures = tuple(sorted({int(a) for a in listed if int(a) >= OLDEST_ARCHITECTURE}))
    if version is None or not architectures:
        raise UserError(
            f"'{path}' does not behave like nvcc: name the right one with CUDACXX=/path/to/nvcc.",
            code="compiler-not-nvcc",
        )
    return Compiler(path, version.group(1), architectures)


def find_cmake() -> Path:
    """Return cmake.

    Raises:
        UserError: it is not on the path.
    """
    found = shutil.which("cmake")
    if found is None:
        raise UserError(
            "cmake was not found: install it with 'pip install cmake' or 'sudo apt install cmake'.",
            code="cmake-missing",
        )
    return Path(found)


def find_headers(folder: Path | None) -> Headers | None:
    """Return TensorRT's headers: in ``folder``, else named by TENSORRT_INCLUDE_DIR, else where JetPack has them.

    Raises:
        UserError: a folder was named, but holds no headers, or headers of a TensorRT that is too old.
    """
    variable = os.environ.get(TENSORRT_VARIABLE)
    named = folder or (Path(variable) if variable else None)
    if named is not None:
        headers = _headers_in(named)
        if headers is None:
            raise UserError(
                f"'{named}' has no {HEADER}: name the folder that has it (JetPack and apt install it with "
                "libnvinfer-headers-dev), or leave --tensorrt-include out to build without the TensorRT wrapper.",
                code="tensorrt-headers-missing",
            )
        if int(headers.version.split(".")[0]) < OLDEST_TENSORRT:
            raise UserError(
                f"'{named}' holds TensorRT {headers.version}, but the wrapper needs TensorRT {OLDEST_TENSORRT} or "
                "newer (JetPack 6.1 or newer).",
                code="tensorrt-headers-too-old",
            )
        return headers
    found = (_headers_in(Path(candidate)) for candidate in _HEADER_FOLDERS)
    return next((h for h in found if h and int(h.version.split(".")[0]) >= OLDEST_TENSORRT), None)


def _headers_in(folder: Path) -> Headers | None:
    version_file = folder / "NvInferVersion.h"
    if not (folder / HEADER).is_file() or not version_file.is_file():
        return None
    text = version_file.read_text(encoding="utf-8", errors="replace")
    parts = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        # Newer headers name the number TRT_…_ENTERPRISE and define NV_TENSORRT_… as that.
        number = re.search(rf"#define (?:NV_TENSORRT_{part}|TRT_{part}_ENTERPRISE) (\d+)", text)
        if number is None:
            return None
        parts.append(number.group(1))
    return Headers(folder, ".".join(parts))


def find_edge_llm(folder: Path | None) -> Headers | None:
    """Return the checkout of TensorRT Edge-LLM: ``folder``, else the one named by EDGE_LLM_DIR.

    Raises:
        UserError: a folder was named, but it is no checkout that pruners can be registered in, or not a whole one.
    """
    variable = os.environ.get(EDGE_LLM_VARIABLE)
    named = folder or (Path(variable) if variable else None)
    if named is None:
        return None
    version_file = named / "cpp" / "common" / "version.h"
    version = None
    if (named / EDGE_LLM_HEADER).is_file() and version_file.is_file():
        version = re.search(
            r'kRUNTIME_VERSION = "([\w.]+)"', version_file.read_text(encoding="utf-8", errors="replace")
        )
    if version is None:
        raise UserError(
            f"'{named}' has no {EDGE_LLM_HEADER}: name a checkout of TensorRT Edge-LLM 0.10.1 or newer.",
            code="edge-llm-missing",
        )
    if not (named / EDGE_LLM_JSON).is_dir():
        raise UserError(
            f"'{named}' has no {EDGE_LLM_JSON}: run 'git submodule update --init' there.",
            code="edge-llm-incomplete",
        )
    return Headers(named, version.group(1))


def find_onnxruntime(folder: Path | None) -> OnnxRuntimeHeaders | None:
    """Return ONNX Runtime's header: in ``folder``, else named by ONNXRUNTIME_INCLUDE_DIR, else of the system.

    Raises:
        UserError: a folder was named, but holds no header, or one that is too old.
    """
    variable = os.environ.get(ONNXRUNTIME_VARIABLE)
    named = folder or (Path(variable) if variable else None)
    if named is None:
        found = (_onnxruntime_in(Path(candidate)) for candidate in _ONNXRUNTIME_FOLDERS)
        return next((headers for headers in found if headers and headers.api >= OLDEST_ONNXRUNTIME), None)
    headers = _onnxruntime_in(named)
    if headers is None:
        raise UserError(
            f"'{named}' has no {ONNXRUNTIME_HEADER}: name the folder 'include' of ONNX Runtime's release archive, or "
            "'include/onnxruntime/core/session' of its repository, or leave --onnxruntime-include out to build without "
            "its operators.",
            code="onnxruntime-headers-missing",
        )
    if headers.api < OLDEST_ONNXRUNTIME:
        raise UserError(
            f"'{named}' holds the C interface of ONNX Runtime 1.{headers.api}, but the operators need 1."
            f"{OLDEST_ONNXRUNTIME} or newer.",
            code="onnxruntime-headers-too-old",
        )
    return headers


def _onnxruntime_in(folder: Path) -> OnnxRuntimeHeaders | None:
    header = folder / ONNXRUNTIME_HEADER
    if not header.is_file():
        return None
    text = header.read_text(encoding="utf-8", errors="replace")
    version = re.search(r"^#define ORT_API_VERSION (\d+)", text, re.MULTILINE)
    return OnnxRuntimeHeaders(folder, int(version.group(1))) if version else None


def choose_architectures(wanted: str | None, compiler: Compiler) -> tuple[int, ...]:
    """Return the architectures to build for.

    ``wanted`` is a list such as ``87,90``. Without it, those of this machine's GPUs; without a GPU, all that the
    compiler knows.

    Raises:
        UserError: an entry is not one of the compiler's.
    """
    known = ", ".join(map(str, compiler.architectures))
    if wanted is None:
        here = tuple(a for a in local_architectures() if a in compiler.architectures)
        return here or compiler.architectures
    chosen = set()
    for entry in wanted.split(","):
        name = entry.strip().removeprefix("sm_").replace(".", "")
        if not name.isdigit() or int(name) not in compiler.architectures:
            raise UserError(
                f"--arch has '{entry.strip()}', but nvcc {compiler.version} builds for {known}: give some of these, "
                "separated by commas.",
                code="architecture-unsupported",
            )
        chosen.add(int(name))
    return tuple(sorted(chosen))


def local_architectures() -> tuple[int, ...]:
    """Return the compute capabilities of this machine's GPUs, without the dot; empty where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    found = set()
    for device in range(count.value):
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
        found.add(10 * major.value + minor.value)
    return tuple(sorted(found))


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"'{' '.join(command)}' failed ({error}): check the CUDA toolkit.", code="compiler-failed"
        ) from error
