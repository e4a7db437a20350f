"""Finding the built libraries, checking them, and handing one to TensorRT.

This is the part that the runtime imports: it needs neither torch nor TensorRT itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.plugins.record import (
    ABI_VERSION,
    DEFAULT_FOLDER,
    LIBRARY,
    OPERATORS,
    LibraryRecord,
    read_record,
    sha256,
)
from divprune_edge.version import __version__

BUILD = "python -m plugins build"
BUILD_OPERATORS = f"{BUILD} --onnxruntime-include DIR"
OPERATORS_VARIABLE = "DIVPRUNE_OPERATORS"
"""Environment variable: the folder of ONNX Runtime's operators, or ``off``."""
OFF = "off"
SERVED = ("divprune", "todre")
"""Selectors whose nodes ONNX Runtime's operators take; other selectors are none of theirs."""
PLUGIN = ("MaxMinDiversity", "1", "")
"""Name, version and namespace under which TensorRT knows the plugin."""


@dataclass(frozen=True)
class Library:
    """A checked library: the file and what is known of it."""

    path: Path
    record: LibraryRecord


def default_path() -> Path:
    """Return where ``python -m plugins build`` puts the library; it need not be there yet."""
    return DEFAULT_FOLDER / LIBRARY


def find_library(folder: Path | None = None) -> Library:
    """Return the library in ``folder``, by default the one that ``python -m plugins build`` puts into the package.

    Raises:
        UserError: there is none, it is of another version, or it is not the file that was built.
    """
    return _checked(folder / LIBRARY if folder else default_path(), BUILD)


def find_operators(folder: Path | None = None) -> Library | None:
    """Return the library of ONNX Runtime's operators in ``folder``, None where it is not built or switched off.

    Without a folder it is looked for in the one that the environment's ``DIVPRUNE_OPERATORS`` names, else in the
    package; ``off`` there leaves the selectors to the functions in their files.

    Raises:
        UserError: it is of another version or not the file that was built, or the folder that the environment names has
            none.
    """
    named = "" if folder else os.environ.get(OPERATORS_VARIABLE, "")
    path = (Path(named) if named else folder or DEFAULT_FOLDER) / OPERATORS
    if named == OFF or not (named or path.is_file()):
        return None
    return _checked(path, BUILD_OPERATORS)


def _checked(path: Path, command: str) -> Library:
    if not path.is_file():
        raise UserError(
            f"There is no plugin library at '{path}': build it with '{command}'.", code="plugin-missing"
        )
    record = read_record(path.parent, path.name)
    if record.version != __version__ or record.abi != ABI_VERSION:
        raise UserError(
            f"'{path}' belongs to divprune-edge {record.version} (interface {record.abi}), this is {__version__} "
            f"(interface {ABI_VERSION}): build it again with '{command}'.",
            code="plugin-version-mismatch",
        )
    if sha256(path) != record.sha256:
        raise UserError(
            f"'{path}' is not the file that was built (its sha256 differs): build it again with '{command}'.",
            code="plugin-changed",
        )
    return Library(path, record)


def register(registry: Any, tensorrt_version: str, library: Library | None = None) -> None:
    """Make TensorRT know the plugin; harmless if it does already.

    Args:
        registry: ``tensorrt.get_plugin_registry()``, or the registry of a builder or runtime.
        tensorrt_version: ``tensorrt.__version__``.
        library: what :func:`find_library` returned; None finds the default one.

    Raises:
        UserError: the library has no wrapper, or one for another major version.
        DivpruneError: TensorRT does not accept it.
    """
    # Not by get_creator: where there is none, TensorRT logs that as an error.
    if any((c.name, c.plugin_version, c.plugin_namespace) == PLUGIN for c in registry.all_creators):
        return
    library = library or find_library()
    headers = library.record.tensorrt
    if headers is None:
        raise UserError(
            f"'{library.path}' was built without TensorRT's headers: build it again with "
            f"'{BUILD} --tensorrt-include DIR'.",
            code="plugin-without-tensorrt",
        )
    # The classes that a plugin shares with TensorRT keep their layout only within a major version.
    if headers.split(".")[0] != tensorrt_version.split(".", maxsplit=1)[0]:
        raise UserError(
            f"'{library.path}' was built for TensorRT {headers}, but TensorRT {tensorrt_version} is running: build it "
            f"again with '{BUILD} --tensorrt-include DIR' and the headers of that version.",
            code="plugin-tensorrt-mismatch",
        )
    if registry.load_library(str(library.path)) is None or registry.get_creator(*PLUGIN) is None:
        raise DivpruneError(
            f"TensorRT {tensorrt_version} did not accept the plugin library '{library.path}'.",
            code="plugin-not-accepted",
        )
