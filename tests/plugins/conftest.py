"""Libraries that the plugin's tests share, each compiled once for a session."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

import pytest
from plugins_emulation import EMULATED, compile_emulated, need, need_headers, need_onnxruntime, plain

from divprune_edge.plugins import abi
from divprune_edge.plugins.build import build
from divprune_edge.plugins.loader import Library, find_library, find_operators
from divprune_edge.plugins.toolchain import Headers, find_compiler


@pytest.fixture(scope="session")
def emulated_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ctypes.CDLL]:
    folder = tmp_path_factory.mktemp("emulated")
    return {architecture: abi.load(compile_emulated(folder, architecture)) for architecture in EMULATED}


@pytest.fixture
def emulated(emulated_libraries: dict[int, ctypes.CDLL]) -> ctypes.CDLL:
    """The library for a GPU with the instructions of sm_80, at the plain schedule."""
    return plain(emulated_libraries[EMULATED[0]])


@pytest.fixture
def with_clusters(emulated_libraries: dict[int, ctypes.CDLL]) -> ctypes.CDLL:
    """The library for a GPU with clusters, which has 132 multiprocessors."""
    return plain(emulated_libraries[900])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library as users build it, for one architecture and without TensorRT's headers."""
    return build_for_87(tmp_path_factory.mktemp("built"), None)


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library with the wrapper for TensorRT."""
    return build_for_87(tmp_path_factory.mktemp("wrapped"), need_headers())


@pytest.fixture(scope="session")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The operators of ONNX Runtime as users build them without nvcc."""
    need("cmake")
    folder = tmp_path_factory.mktemp("operators")
    build(None, None, (), folder, onnxruntime=need_onnxruntime())
    found = find_operators(folder)
    assert found is not None
    return found


def build_for_87(folder: Path, headers: Headers | None) -> Library:
    need("cmake")
    if shutil.which("nvcc") is None and "CUDACXX" not in os.environ:
        pytest.skip("nvcc is not installed")
    build(find_compiler(), headers, (87,), folder)
    return find_library(folder)
