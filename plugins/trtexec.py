"""What TensorRT's version decides about the plugin: which file its parser needs, and how trtexec is told of it."""

from __future__ import annotations

import re
from pathlib import Path

from divprune_edge.errors import UserError

LAST_STRIPPED = (10, 6)
"""Up to here the ONNX parser prefers the node's local function to the plugin: the file must not have one."""


def parse_version(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as ``10.3`` or ``10.16.2``.

    Raises:
        UserError: it is not a version, or one without plugins of this kind.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.|$)", version)
    if match is None:
        raise UserError(
            f"'{version}' is not a TensorRT version: give one such as 10.3 or 11.4.",
            code="tensorrt-version-invalid",
        )
    major, minor = int(match.group(1)), int(match.group(2))
    if major < 10:
        raise UserError(
            f"TensorRT {version} has no plugins of this kind: TensorRT 10 or newer is needed.",
            code="tensorrt-too-old",
        )
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
