"""The wrapper without TensorRT: a mock builder over its real headers, its real Python bindings over stubs.

Neither TensorRT nor its headers can be had from a package index, so these tests skip themselves, saying why, where
TENSORRT_INCLUDE_DIR names no headers or ``make bindings`` has not been run.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from plugins_emulation import EMULATED, ROOT, SOURCE, compile_cpp, compile_emulated, need

from divprune_edge.plugins.build import build
from divprune_edge.plugins.toolchain import TENSORRT_VARIABLE, find_compiler, find_headers

pytestmark = pytest.mark.xdist_group("tensorrt")
HERE = Path(__file__).resolve().parent / "tensorrt"
CUDA_INCLUDE = "/usr/local/cuda/include"
BINDINGS = ("10.16.1.11", "11.4.0.106")
SONAMES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")


def include_flags() -> list[str]:
    """Where TensorRT's and CUDA's headers are."""
    folder = os.environ.get(TENSORRT_VARIABLE)
    if not folder:
        pytest.skip(f"{TENSORRT_VARIABLE} is not set")
    if not Path(CUDA_INCLUDE).is_dir():
        pytest.skip(f"there are no CUDA headers in {CUDA_INCLUDE}")
    return [f"-isystem{folder}", f"-isystem{CUDA_INCLUDE}"]


def test_a_mock_builder_drives_the_plugin(tmp_path: Path) -> None:
    flags = include_flags()
    kernels = compile_emulated(tmp_path, EMULATED[0])
    sources = [HERE / "mock_builder.cpp", *sorted((SOURCE / "tensorrt").glob("*.cpp")), kernels]
    program = compile_cpp(tmp_path / "mock_builder", sources, *flags, f"-Wl,-rpath,{tmp_path}")
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_library_with_the_wrapper_shows_two_interfaces(tmp_path: Path) -> None:
    include_flags()
    need("cmake")
    need("nvcc")
    record = build(find_compiler(), find_headers(None), (87,), tmp_path)
    assert record.tensorrt is not None
    symbols = exported(tmp_path / "libdivprune_plugins.so")
    assert {name for name in symbols if not name.startswith("divprune_")} == {
        "getCreators",
        "setLoggerFinder",
    }
    undefined = undefined_symbols(tmp_path / "libdivprune_plugins.so")
    assert not [name for name in undefined if "nvinfer" in name.lower()], "it links no TensorRT symbol"


@pytest.mark.parametrize("version", BINDINGS)
def test_the_real_python_bindings(version: str, tmp_path: Path) -> None:
    """What the loader and a plan need of the bindings; with headers also the library itself, through them."""
    bindings = ROOT / "build" / "bindings" / version
    if not bindings.is_dir() or platform.machine() != "x86_64":
        pytest.skip(f"no bindings in {bindings.relative_to(ROOT)} (make bindings)")
    major = version.split(".", maxsplit=1)[0]
    sources, flags, library = [HERE / "stub.cpp"], [], None
    headers = find_headers(None) if os.environ.get(TENSORRT_VARIABLE) else None
    # Before 10.16 the registry had fewer functions than the bindings here call.
    known = tuple(int(part) for part in headers.version.split(".")[:2]) if headers else (0, 0)
    if headers is not None and known >= (10, 16) and known[0] == int(major):
        sources.append(HERE / "mock_registry.cpp")
        flags = [*include_flags(), "-Wno-deprecated-declarations"]
        library = tmp_path / "library"
        build(find_compiler(), headers, (87,), library)
    for name in SONAMES:
        soname = f"lib{name}.so.{major}"
        compile_cpp(tmp_path / soname, sources, "-shared", "-fPIC", *flags, f"-Wl,-soname,{soname}")
    command = [sys.executable, str(HERE / "surface.py"), str(bindings), *([str(library)] if library else [])]
    result = subprocess.run(
        command,
        env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0 and "No module named" in result.stderr:
        pytest.skip(f"the bindings in {bindings.relative_to(ROOT)} are for another Python")
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"TensorRT {version}"


def exported(path: Path) -> set[str]:
    return names(path, "--defined-only")


def undefined_symbols(path: Path) -> set[str]:
    return names(path, "--undefined-only")


def names(path: Path, which: str) -> set[str]:
    ctypes.CDLL(str(path))
    output = subprocess.run(
        [need("nm"), "-D", which, path], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1] for line in output.splitlines()}
