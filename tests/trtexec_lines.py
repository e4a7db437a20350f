"""What ``python -m runtime trtexec`` prints and writes, read back."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np

from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.lab.trtexec.options import unknown_options


def lines_of(
    command: Any, bundle: Bundle, version: str, library: Path, output: Path, *options: Any
) -> dict[str, list[str]]:
    """Return title -> arguments of the lines, which trtexec of that version knows."""
    done = command(
        *("trtexec", bundle.path, "--tensorrt", version, "--library", library, "--output", output), *options
    )
    assert done.code == 0, done.err
    text = done.out.splitlines()
    found = {t[2:]: shlex.split(line)[1:] for t, line in zip(text[::2], text[1::2], strict=True)}
    for arguments in found.values():
        assert unknown_options(version, arguments) == []
    return found


def shapes_of(arguments: list[str], option: str) -> list[dict[str, tuple[int, ...]]]:
    """What each of an option's lists says, by input."""
    lists = [a.split("=", 1)[1] for a in arguments if a.startswith(f"--{option}=")]
    pairs = [[part.rsplit(":", 1) for part in one.split(",")] for one in lists]
    return [{name: tuple(int(s) for s in shape.split("x")) for name, shape in one} for one in pairs]


def values_of(folder: Path, bundle: Bundle, stage: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Read what a stage loads."""
    manifest = bundle.manifest
    graph = {
        "vision": manifest.vision_encoder,
        "assemble": manifest.assemble,
        "select": manifest.selectors[0],
    }[stage]
    assert graph is not None
    return {
        info.name: np.fromfile(folder / f"{stage}.{info.name}.bin", info.dtype).reshape(shapes[info.name])
        for info in graph.inputs
    }
