"""``python -m runtime trtexec BUNDLE``: the lines, and the values that they load."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raising import assert_told

from divprune_edge.models.profiles import make_limits
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.engines.graphs import graphs_of
from divprune_edge.runtime.lab.trtexec.lines import shape_list
from divprune_edge.runtime.lab.trtexec.options import unknown_options

Get = Callable[[str], Path]
CASES = [
    ("decomposed", "10.3"),
    ("decomposed", "10.16.2"),
    ("decomposed", "11.0"),
    ("static", "10.16.2"),
    ("static", "11.1"),
    ("static", "11.4.1"),
]


@pytest.fixture
def lines(
    command: Any, dialect_bundle: Get, library: Path, tmp_path: Path
) -> Callable[..., dict[str, list[str]]]:
    """Title -> arguments of the printed lines."""

    def get(dialect: str, version: str, *options: object) -> dict[str, list[str]]:
        result = command(
            "trtexec",
            dialect_bundle(dialect),
            *("--tensorrt", version, "--library", library, "--output", tmp_path / "out", *options),
        )
        assert result.code == 0, result.err
        text = result.out.splitlines()
        assert all(line.startswith("# ") for line in text[::2])
        found = {title[2:]: shlex.split(line) for title, line in zip(text[::2], text[1::2], strict=True)}
        assert {line[0] for line in found.values()} == {"trtexec"}
        return {title: line[1:] for title, line in found.items()}

    return get


def option(arguments: list[str], name: str) -> str:
    (found,) = [argument for argument in arguments if argument.startswith(f"{name}=")]
    return found.split("=", 1)[1]


def shapes_in(text: str) -> dict[str, tuple[int, ...]]:
    pairs = (part.rsplit(":", 1) for part in text.split(","))
    return {name: tuple(int(size) for size in shape.split("x")) for name, shape in pairs}


@pytest.mark.parametrize(("dialect", "version"), CASES)
def test_every_line_has_only_options_of_its_release(lines: Any, dialect: str, version: str) -> None:
    found = lines(dialect, version)
    assert list(found) == [
        *("build vision_encoder", "measure vision", "build divprune-58", "measure select"),
        *("build language_model", "measure prefill", "measure decode"),
    ]
    for title, arguments in found.items():
        assert unknown_options(version, arguments) == [], title
        # The plugin is only where it is needed, to build and to run.
        with_plugin = any(argument.startswith("--dynamicPlugins=") for argument in arguments)
        assert with_plugin == (title in ("build divprune-58", "measure select"))
        assert ("--skipInference" in arguments) == title.startswith("build")
        assert not any(argument.startswith("--staticPlugins") for argument in arguments)


@pytest.mark.parametrize(("dialect", "version"), [("decomposed", "10.3"), ("static", "11.4")])
def test_shapes_are_the_builders(lines: Any, dialect_bundle: Get, dialect: str, version: str) -> None:
    bundle = Bundle.open(dialect_bundle(dialect))
    chosen = [bundle.selector()]
    graphs = graphs_of(bundle, chosen, make_limits(bundle.manifest, chosen, None), version)
    found = lines(dialect, version)
    for graph in graphs:
        arguments = found[f"build {graph.name}"]
        assert option(arguments, "--onnx").endswith(f"/{graph.file}")
        if len(graph.profiles) == 1:
            starts = [arguments.index(a) - 1 for a in arguments if a.startswith("--minShapes=")]
        else:
            starts = [arguments.index(f"--profile={i}") for i in range(len(graph.profiles))]
        assert len(starts) == len(graph.profiles)
        for start, profile in zip(starts, graph.profiles, strict=True):
            for offset, bound in enumerate(("min", "opt", "max"), start=1):
                name, text = arguments[start + offset].split("=", 1)
                assert name == f"--{bound}Shapes"
                given = shapes_in(text)
                for tensor, shapes in profile.items():
                    pattern = "past_key_values.*" if tensor.startswith("past_key_values.") else tensor
                    assert given[pattern] == getattr(shapes, bound), tensor


@pytest.mark.parametrize("dialect", ["decomposed", "static"])
def test_inputs_are_real_and_fit(lines: Any, dialect_bundle: Get, dialect: str) -> None:
    manifest = Bundle.open(dialect_bundle(dialect)).manifest
    info = manifest.language_model
    found = lines(dialect, "10.16")
    types = {tensor.name: np.dtype(tensor.dtype) for tensor in info.inputs}
    loaded: dict[str, dict[str, Any]] = {}
    for stage in ("prefill", "decode"):
        arguments = found[f"measure {stage}"]
        shapes = shapes_in(option(arguments, "--shapes"))
        loaded[stage] = {}
        for part in option(arguments, "--loadInputs").split(","):
            name, path = part.rsplit(":", 1)
            data = Path(path).read_bytes()
            dtype = types["past_key_values.0.key" if name.endswith("*") else name]
            loaded[stage][name] = np.frombuffer(data, dtype).reshape(shapes[name])
        assert set(loaded[stage]) == {
            "past_key_values.*" if name.startswith("past_key_values.") else name for name in types
        }
    prefill, decode = loaded["prefill"], loaded["decode"]
    ids = prefill["input_ids"]
    assert ids.min() >= 0
    assert ids.max() == info.embedding_rows + 57
    assert prefill["position_ids"].tolist() == [list(range(ids.shape[1]))]
    assert decode["position_ids"].tolist() == [[ids.shape[1]]]
    tokens = prefill["visual_tokens"]
    assert np.isfinite(tokens).all()
    # Kept tokens are rows of what the vision encoder said, so the selector's input holds them.
    seen = np.fromfile(
        next(Path(option(found["measure select"], "--exportTimes")).parent.glob("inputs/select.visual*")),
        tokens.dtype,
    )
    rows = {row.tobytes() for row in seen.reshape(-1, manifest.vision_encoder.width)}
    assert all(row.tobytes() in rows for row in tokens[0])
    cache = decode["past_key_values.*"]
    assert not prefill["past_key_values.*"].any()
    assert cache[:, :, : ids.shape[1]].all()
    assert not cache[:, :, ids.shape[1] :].any()
    if dialect == "static":
        assert decode["write_indices"].tolist() == [ids.shape[1]]
        assert decode["attention_mask"].sum() == ids.shape[1] + 1
    else:
        assert decode["cache_mask"].sum() == ids.shape[1]


def test_one_stage_of_a_bundle_for_other_engines(
    command: Any, demo_bundle: Path, library: Path, tmp_path: Path
) -> None:
    """A selector is the same graph whatever runs the language model."""
    options = ("--tensorrt", "10.3", "--library", library, "--output", tmp_path / "o")
    result = command("trtexec", demo_bundle, *options, "--stage", "selector")
    assert result.code == 0, result.err
    assert "/selectors/stripped/divprune-58.onnx" in result.out
    assert result.out.count("trtexec ") == 2
    newer = command("trtexec", demo_bundle, "--tensorrt", "10.15", *options[2:], "--stage", "selector")
    assert "/selectors/divprune-58.onnx" in newer.out


def test_no_pruning_has_no_selector(lines: Any) -> None:
    found = lines("decomposed", "10.3", "--selector", "none", "--stage", "vision")
    assert list(found) == ["build vision_encoder", "measure vision"]


def test_the_target_names_the_version(command: Any, dialect_bundle: Get, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(dialect_bundle("decomposed"), tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "target": "agx-orin-64gb"}))
    result = command("trtexec", copy, "--stage", "vision")
    assert result.code == 0, result.err
    assert "TensorRT 10.3" in result.err
    assert (copy / "trtexec" / "inputs" / "vision.pixels.bin").is_file()
    Bundle.open(copy, "always")


def test_a_target_of_the_other_edition_names_none(
    command: Any, dialect_bundle: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    copy = Path(shutil.copytree(dialect_bundle("decomposed"), tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "target": "rtx4090"}))
    refused(
        command("trtexec", copy, "--stage", "vision"),
        "trtexec-with-target",
        "GeForce RTX 4090",
        "TensorRT-RTX",
        "--tensorrt",
    )


def test_shapes_of_unlike_caches_stay_apart() -> None:
    shapes = {"past_key_values.0.key": (1, 2), "past_key_values.0.value": (1, 3), "x": (4,)}
    assert shape_list(shapes) == "x:4,past_key_values.0.key:1x2,past_key_values.0.value:1x3"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--tensorrt", "8.6"], ["tensorrt-too-old", "8.6", "10"]),
        (["--tensorrt", "ten"], ["tensorrt-version-invalid", "'ten'"]),
        (["--tensorrt", "10.1"], ["tensorrt-too-old", "10.1", "10.3"]),
        ([], ["tensorrt-version-not-given", "--tensorrt", "10.3 (JetPack 6.2)"]),
        (
            ["--tensorrt", "10.3", "--stage", "selectr"],
            ["stage-unknown", "'selectr'", "did you mean 'selector'"],
        ),
        (["--tensorrt", "10.3", "--selector", "divprune-9"], ["selector-not-in-bundle", "'divprune-9'"]),
        (
            ["--tensorrt", "10.3", "--selector", "none", "--stage", "selector"],
            ["stage-without-selector", "--selector"],
        ),
        (["--tensorrt", "10.3", "--max-prompt", "9999"], ["max-prompt-out-of-range", "--max-prompt is 9999"]),
        (["--tensorrt", "10.3", "--max-prompt", "64"], ["prompt-too-long", "--max-prompt", "64"]),
        (["--tensorrt", "10.3", "--output", "a,b"], ["output-name-unfit", "a,b", "--output"]),
        (
            ["--tensorrt", "10.3", "--json", "x.json"],
            ["report-without-run", "--json", "--html", "--run", "--read"],
        ),
        (["--tensorrt", "10.3", "--image", "/no/such.png"], ["image-missing", "/no/such.png"]),
        (["--read", "/no/such"], ["options-exclusive", "BUNDLE", "--read"]),
    ],
)
def test_bad_options(
    command: Any, dialect_bundle: Get, library: Path, tmp_path: Path, options: list[str], parts: list[str]
) -> None:
    given = options if "--output" in options else [*options, "--output", str(tmp_path)]
    result = command("trtexec", dialect_bundle("decomposed"), "--library", library, *given)
    refused(result, *parts)


def refused(result: Any, code: str, *parts: str) -> None:
    assert_told(result.code, result.err, code, *parts)
    assert result.err.count("\n") == 1


def test_dialects_that_tensorrt_cannot_take(
    command: Any, demo_bundle: Path, dialect_bundle: Get, library: Path, tmp_path: Path
) -> None:
    options = ("--tensorrt", "10.3", "--library", library, "--output", tmp_path)
    refused(command("trtexec", demo_bundle, *options), "dialect-not-for-tensorrt", "'portable'")
    refused(
        command("trtexec", dialect_bundle("static"), *options),
        "dialect-needs-newer-tensorrt",
        "TensorRT 10.15",
    )
    refused(command("trtexec"), "options-exclusive", "BUNDLE", "--read")


def test_a_plugin_that_is_named_must_be_there(command: Any, dialect_bundle: Get, tmp_path: Path) -> None:
    options = ("--tensorrt", "10.3", "--library", tmp_path, "--output", tmp_path)
    refused(
        command("trtexec", dialect_bundle("decomposed"), *options),
        "plugin-missing",
        "python -m plugins build",
    )


def test_lines_before_the_plugin_is_built(
    command: Any, dialect_bundle: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They name where it will lie, and say that it is not there; running them is another matter."""
    missing = tmp_path / "lib" / "libplugin.so"
    monkeypatch.setattr("divprune_edge.runtime.lab.trtexec.job.default_path", lambda: missing)
    monkeypatch.setattr("divprune_edge.plugins.loader.default_path", lambda: missing)
    options = (dialect_bundle("decomposed"), "--tensorrt", "10.3", "--output", tmp_path / "out")
    result = command("trtexec", *options)
    assert result.code == 0, result.err
    assert result.out.count(f"--dynamicPlugins={missing}") == 2
    assert "not there yet: build it with 'python -m plugins build' first" in result.err
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v100300]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    refused(command("trtexec", *options, "--run"), "plugin-missing", "python -m plugins build")


def test_trtexec_that_is_not_there(
    command: Any, dialect_bundle: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        "divprune_edge.runtime.lab.trtexec.program.JETPACK", tmp_path / "usr/src/tensorrt/bin/trtexec"
    )
    result = command("trtexec", dialect_bundle("decomposed"), "--run", "--output", tmp_path)
    refused(result, "trtexec-missing", "/usr/src/tensorrt/bin/trtexec", "JetPack")
