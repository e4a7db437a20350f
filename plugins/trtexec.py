"""The trtexec command line that builds an engine from a selector graph with the plugin."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from divprune_edge.errors import UserError

LAST_STRIPPED = (10, 6)
"""Up to here the ONNX parser prefers the node's local function to the plugin: the file must not have one."""
LAST_WITH_TYPING_FLAG = 10


def parse_version(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as ``10.3`` or ``10.16.2``.

    Raises:
        UserError: it is not a version, or one without plugins of this kind.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.|$)", version)
    if match is None:
        raise UserError(f"'{version}' is not a TensorRT version: give one such as 10.3 or 11.4.")
    major, minor = int(match.group(1)), int(match.group(2))
    if major < 10:
        raise UserError(f"TensorRT {version} has no plugins of this kind: TensorRT 10 or newer is needed.")
    return major, minor


def needs_stripped(version: str) -> bool:
    """Whether this TensorRT needs the selector file without its local function."""
    return parse_version(version) <= LAST_STRIPPED


def plugin_options(library: Path) -> list[str]:
    """Return the options that make trtexec know the plugin, to build and to run an engine.

    ``--dynamicPlugins`` and not ``--staticPlugins``: the former asks TensorRT's registry to load the library, the
    latter only opens it and counts on its constructors to register something, which a library that links no
    TensorRT does not do.
    """
    return [f"--dynamicPlugins={library}"]


def embed_options(library: Path) -> list[str]:
    """Return the additional option that stores the library in the plan, so that running it needs no file."""
    return [f"--setPluginsToSerialize={library}"]


def build_command(
    version: str, library: Path, graph: Path, shapes: Mapping[str, Sequence[int]], *, embed: bool = False
) -> str:
    """Return the command line that builds the engine of a selector graph.

    Args:
        version: of TensorRT.
        library: the plugin library.
        graph: the selector's ONNX file; the stripped one where :func:`needs_stripped`.
        shapes: shape of each input.
        embed: store the library in the plan.
    """
    major, _ = parse_version(version)
    spec = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    options = [
        f"--onnx={graph}",
        f"--saveEngine={graph.stem}.plan",
        *plugin_options(library),
        *(embed_options(library) if embed else []),
        # Types come from the graph. Version 11 knows no other way and no such option any more.
        *(["--stronglyTyped"] if major <= LAST_WITH_TYPING_FLAG else []),
        *(f"--{bound}Shapes={spec}" for bound in ("min", "opt", "max")),
    ]
    return shlex.join(["trtexec", *options])
