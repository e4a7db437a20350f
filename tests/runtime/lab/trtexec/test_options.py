"""The tables of trtexec's options, and what each release is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_module
from raising import assert_told, refused

from divprune_edge.runtime.lab.trtexec.generate_options import read_options
from divprune_edge.runtime.lab.trtexec.options import (
    attention_options,
    build_options,
    known_options,
    measure_options,
    option_tables,
    plugin_options,
    unknown_options,
)

SOURCE = """
bool getThing(Arguments& arguments, char const* argument);
void BuildOptions::parse(Arguments& arguments)
{
    getAndDelOption(arguments, "--onnx", model);
    getShapesBuild(arguments, shapes, "--minShapes", nvinfer1::OptProfileSelector::kMIN);
    if (getAndDelNegOption(arguments, "--noTF32", tf32)) { throw std::invalid_argument("--gone is gone"); }
    getFormats(inputFormats, "--inputIOFormats");
}
void TaskInferenceOptions::parse(Arguments& arguments) { getAndDelOption(arguments, "--other", other); }
"""


def test_the_tables_hold_what_the_releases_differ_in() -> None:
    tables = option_tables()
    assert list(tables) == [(10, 3), (10, 16), (11, 0), (11, 1)]
    assert all(len(options) > 100 for options in tables.values())
    for name in ("--fp16", "--int8", "--best", "--calib", "--precisionConstraints", "--weightless"):
        assert [name in tables[version] for version in tables] == [True, True, False, False], name
    for name in ("--noCudaGraph", "--noSpinWait", "--includeDataTransfers"):
        assert [name in tables[version] for version in tables] == [False, False, True, True], name
    for name in ("--onnx", "--loadInputs", "--exportTimes", "--dynamicPlugins", "--profile", "--useProfile"):
        assert all(name in options for options in tables.values()), name


def test_a_release_between_two_has_the_options_of_the_older() -> None:
    tables = option_tables()
    assert known_options("10.13.2") == tables[10, 3]
    assert known_options("10.16.2.10") == tables[10, 16]
    assert known_options("12.0") == tables[11, 1]


@pytest.mark.parametrize(
    ("version", "code", "given"),
    [
        ("10.1", "tensorrt-too-old", "10.3"),
        ("8.6", "tensorrt-too-old", "10"),
        ("ten", "tensorrt-version-invalid", "10.3"),
    ],
)
def test_versions_that_are_refused(version: str, code: str, given: str) -> None:
    with refused(code, version, given):
        known_options(version)


def test_unknown_options_are_found() -> None:
    assert unknown_options("11.0", ["--onnx=x", "--fp16", "--noCudaGraph"]) == ["--fp16"]
    assert unknown_options("10.3", ["--onnx=x", "--fp16", "--noCudaGraph"]) == ["--noCudaGraph"]


@pytest.mark.parametrize("version", ["10.3", "10.16", "11.0", "11.4"])
@pytest.mark.parametrize("graph", [False, True])
def test_every_release_is_told_what_to_measure(version: str, graph: bool) -> None:
    options = [*measure_options(version, cuda_graph=graph), *build_options(version)]
    assert unknown_options(version, options) == []
    old = version.startswith("10.")
    for name in ("--noDataTransfers", "--useSpinWait", "--separateProfileRun", "--stronglyTyped"):
        assert (name in options) == old
    # A CUDA graph is the default from 11 on: it is asked for before, and refused afterwards.
    assert ("--useCudaGraph" in options) == (old and graph)
    assert ("--noCudaGraph" in options) == (not old and not graph)


def test_attention_may_be_split_where_trtexec_can_say_so() -> None:
    assert attention_options("10.3") == []
    for version in ("10.16.2", "11.0", "11.4"):
        assert attention_options(version) == ["--decomposableAttentions=*"]


def test_options_are_read_from_the_source() -> None:
    assert read_options(SOURCE) == ["--help", "--inputIOFormats", "--minShapes", "--noTF32", "--onnx"]
    with refused("source-not-recognized"):
        read_options("int main() { return 0; }")


def test_tables_are_made_from_a_clone(tmp_path: Path) -> None:
    generate = "divprune_edge.runtime.lab.trtexec.generate_options"
    told = run_module(generate, str(tmp_path), "v10.3.0")
    assert_told(told.returncode, told.stderr, "git-failed", f"'{tmp_path}'")
    told = run_module(generate, str(tmp_path), "main")
    assert_told(told.returncode, told.stderr, "revision-invalid", "'main'", "v10.3.0")


def test_the_registry_loads_the_plugin() -> None:
    """Not ``--staticPlugins``, which only opens a library that registers itself."""
    library = Path("/opt/lib/libdivprune_plugins.so")
    assert plugin_options(library) == [f"--dynamicPlugins={library}"]
