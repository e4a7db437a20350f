"""The wrapper without TensorRT: a mock builder over its real headers, its real Python bindings over stubs.

What a real TensorRT proves is in test_rtx.py. Only here: TensorRT 10, whose library is in no package index, and shape
inference, format negotiation and execution, which no TensorRT without a GPU does for a plugin.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from bindings import SONAMES, STUB, open_bindings
from plugins_emulation import EMULATED, SOURCE, compile_cpp, compile_emulated, need, need_headers

from divprune_edge.plugins.loader import Library

pytestmark = pytest.mark.xdist_group("tensorrt")
HERE = Path(__file__).resolve().parent / "tensorrt"
CUDA_INCLUDE = "/usr/local/cuda/include"
BINDINGS = ("10.3.0", "10.16.1.11", "11.4.0.106")


def include_flags() -> list[str]:
    """Where TensorRT's and CUDA's headers are."""
    folder = need_headers().folder
    if not Path(CUDA_INCLUDE).is_dir():
        pytest.skip(f"unproven: no CUDA headers in {CUDA_INCLUDE}")
    return [f"-isystem{folder}", f"-isystem{CUDA_INCLUDE}"]


def test_a_mock_builder_drives_the_plugin(tmp_path: Path) -> None:
    flags = include_flags()
    kernels = compile_emulated(tmp_path, EMULATED[0])
    sources = [HERE / "mock_builder.cpp", *sorted((SOURCE / "tensorrt").glob("*.cpp")), kernels]
    program = compile_cpp(tmp_path / "mock_builder", sources, *flags, f"-Wl,-rpath,{tmp_path}")
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_library_with_the_wrapper_shows_two_interfaces(wrapped: Library) -> None:
    symbols = names(wrapped.path, "--defined-only")
    assert {name for name in symbols if not name.startswith("divprune_")} == {
        "getCreators",
        "setLoggerFinder",
    }
    undefined = names(wrapped.path, "--undefined-only")
    assert not [name for name in undefined if "nvinfer" in name.lower()], "it links no TensorRT symbol"


@pytest.mark.parametrize("version", BINDINGS)
def test_the_real_python_bindings(version: str, tmp_path: Path) -> None:
    """What the loader and a plan need of the bindings."""
    result = open_bindings(version, tmp_path).run(HERE / "surface.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == f"TensorRT {version}"


@pytest.mark.parametrize("version", BINDINGS)
def test_the_real_python_bindings_take_the_creator(version: str, wrapped: Library, tmp_path: Path) -> None:
    known, wanted = (tuple(map(int, text.split(".")[:2])) for text in (str(wrapped.record.tensorrt), version))
    # Before 10.16 the registry had fewer functions than later bindings call.
    if known[0] != wanted[0] or known < min(wanted, (10, 16)):
        pytest.skip(
            f"unproven: headers of TensorRT {wrapped.record.tensorrt} do not fit the bindings {version}"
        )
    bindings = open_bindings(version, tmp_path)
    flags = ["-shared", "-fPIC", *include_flags(), "-Wno-deprecated-declarations"]
    for name in SONAMES:
        soname = f"lib{name}.so.{wanted[0]}"
        sources = [STUB, HERE / "mock_registry.cpp"]
        compile_cpp(tmp_path / soname, sources, *flags, f"-Wl,-soname,{soname}")
    result = bindings.run(HERE / "surface.py", wrapped.path.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "creator: registers through the loader" in result.stdout


def names(path: Path, which: str) -> set[str]:
    ctypes.CDLL(str(path))
    output = subprocess.run(
        [need("nm"), "-D", which, path], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1] for line in output.splitlines()}
