"""The plugin in a real TensorRT: TensorRT-RTX, whose registry and ONNX parser need no GPU.

Its networks have no plugin layers, so a plugin is created there and no more; test_tensorrt.py has the rest. Each
script is a process of its own, because TensorRT-RTX ends the process when a plugin is to become a layer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from plugins_emulation import ROOT, need_rtx

from divprune_edge.export.selector import build_selector
from divprune_edge.export.writer import write_graph
from divprune_edge.models.selectors.divprune import DIVPRUNE
from divprune_edge.plugins.loader import Library

pytestmark = pytest.mark.xdist_group("tensorrt")
CREATED = "Successfully created plugin: MaxMinDiversity"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    need_rtx()
    command = [sys.executable, ROOT / "tests" / "plugins" / "tensorrt" / script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="session")
def library(wrapped: Library) -> Library:
    if not str(wrapped.record.tensorrt).startswith("11."):
        pytest.skip(
            f"unproven: TensorRT-RTX has TensorRT 11's classes, the headers {wrapped.record.tensorrt}'s"
        )
    return wrapped


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``full.onnx`` with the selector's local function and ``stripped.onnx`` without."""
    folder = tmp_path_factory.mktemp("graphs")
    for name, full in (("full.onnx", True), ("stripped.onnx", False)):
        write_graph(build_selector(DIVPRUNE, 36, 9, 64, "float16", local_function=full), folder, name)
    return folder


@pytest.mark.parametrize("owner", ["global", "builder", "runtime"])
def test_the_registry_takes_the_library(owner: str, library: Library) -> None:
    result = run("rtx_registry.py", owner, library.path.parent)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("\n") == 4
    assert "MaxMinDiversity" not in result.stderr, "what is refused is told to the log alone"


def test_the_registry_refuses_a_library_without_the_wrapper(built: Library) -> None:
    result = run("rtx_registry.py", "global", built.path.parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "registry: refuses a library without the wrapper\n"


@pytest.mark.parametrize("graph", ["full.onnx", "stripped.onnx"])
def test_the_parser_creates_the_plugin_and_then_ends(graph: str, graphs: Path, library: Library) -> None:
    """A registered plugin wins over the function, by the node's namespace; a layer TensorRT-RTX cannot make of it."""
    result = run("rtx_parser.py", graphs / graph, library.path.parent)
    assert CREATED in result.stdout, result.stdout + result.stderr
    assert result.returncode == -signal.SIGABRT, "TensorRT-RTX has plugin layers now: prove the layer here"
    assert result.stdout.splitlines()[-1] == CREATED
    assert "terminate called" in result.stderr


def test_without_the_library_the_function_is_taken(graphs: Path) -> None:
    result = run("rtx_parser.py", graphs / "full.onnx")
    outputs = [("kept_tokens", "HALF", (-1, 9, 64)), ("kept_indices", "INT64", (-1, 9))]
    assert result.stdout.splitlines()[-1] == f"parsed {outputs}", result.stdout + result.stderr
    result = run("rtx_parser.py", graphs / "stripped.onnx")
    assert "Plugin not found" in result.stdout
    assert result.stdout.splitlines()[-1] == "refused []", result.stdout + result.stderr


@pytest.mark.parametrize("k", [None, 0, -3, 9.0, [3, 4]], ids=str)
def test_the_parser_hands_on_why_a_node_is_refused(
    k: object, graphs: Path, library: Library, tmp_path: Path
) -> None:
    model = onnx.load(graphs / "stripped.onnx")
    (node,) = model.graph.node
    node.attribute.remove(next(attribute for attribute in node.attribute if attribute.name == "k"))
    if k is not None:
        node.attribute.append(onnx.helper.make_attribute("k", k))
    onnx.save(model, tmp_path / "wrong.onnx")
    result = run("rtx_parser.py", tmp_path / "wrong.onnx", library.path.parent)
    words = "MaxMinDiversity: node '/MaxMinDiversity' needs the attribute k, one positive integer."
    assert words in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == "refused []", result.stdout + result.stderr
