"""The runtime as a wheel, built from the modules that are running: the same bytes from a clone and from an install.

It holds what answers a question on a board: not the export, the lab, or the demo's weights and trainer. The files are
laid out with a ``pyproject.toml`` whose facts come from the installed metadata, and setuptools makes the wheel, in a
process of its own, without a network. It is called ``divprune-edge-runtime``, because it is not the whole of
divprune-edge.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.export.package.archive import EPOCH
from divprune_edge.version import __version__

DISTRIBUTION = "divprune-edge-runtime"
PACKAGE = "divprune_edge"
PARTS = ("manifest", "models", "plugins", "processing", "runtime")
"""Sub-packages that the runtime consists of, beside the modules of ``divprune_edge`` itself."""
SHIMS = ("plugins", "runtime")
PLUGIN_SOURCES = ("CMakeLists.txt", "csrc")

_LEFT_OUT = (
    "models/demo/checkpoint/",
    "models/demo/qwen3-vl-checkpoint/",
    "models/demo/trainer/",
    "plugins/lib/",
    "runtime/lab/",
)
_SHIM = """\
\"\"\"Forwards ``python -m {name} …`` to ``divprune_edge.{name}``; nothing else lives under this name.\"\"\"

from divprune_edge.{name}.cli import main

if __name__ == "__main__":
    main()
"""
_PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "{version}"
description = "Runtime of divprune-edge: exported bundles into answers, with ONNX Runtime or TensorRT."
license = "{licence}"
license-files = ["LICENSE*"]
requires-python = "{python}"
dependencies = {dependencies}
scripts.{command} = "{package}.cli:main"

[tool.setuptools]
py-modules = {shims}
include-package-data = false

[tool.setuptools.packages.find]
include = ["{package}*"]

[tool.setuptools.package-data]
"*" = ["**"]
"""
_BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


def wheel_name() -> str:
    """Return the file name of the wheel."""
    return f"{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl"


def runtime_wheel() -> bytes:
    """Return the wheel of the runtime.

    Raises:
        UserError: divprune-edge or setuptools is not installed.
    """
    installed = _installed()
    if find_spec("setuptools") is None:
        raise UserError(
            "A package builds the runtime's wheel with setuptools, which is not installed: 'pip install setuptools'.",
            code="setuptools-missing",
        )
    with tempfile.TemporaryDirectory(prefix="divprune-edge-wheel-") as folder:
        source, output = Path(folder, "source"), Path(folder, "wheel")
        files = _files() | {"pyproject.toml": _project(installed).encode()}
        if licence := installed.read_text("licenses/LICENSE"):
            files["LICENSE"] = licence.encode()
        for name, data in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o644)
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, str(output)],
            cwd=source,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)},  # the time of every entry
            umask=0o022,  # modes are part of the bytes
            capture_output=True,
            text=True,
            check=False,
        )
        wheel = output / wheel_name()
        if done.returncode != 0 or not wheel.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"setuptools did not build the runtime's wheel ({last}): version 77 or later is needed, "
                "'pip install --upgrade setuptools'.",
                code="wheel-failed",
            )
        return wheel.read_bytes()


def plugin_sources() -> dict[str, bytes]:
    """Return the plugin's CMake project by relative path, for those who would rather run CMake."""
    folder = _folder(f"{PACKAGE}.plugins")
    return {
        name: data
        for name, data in _walk(folder)
        if any(name == part or name.startswith(f"{part}/") for part in PLUGIN_SOURCES)
    }


def installed_dependencies() -> list[str]:
    """Return what divprune-edge needs without any extra, as its installed metadata says."""
    return [entry for entry in _installed().requires or [] if "extra ==" not in entry]


def _files() -> dict[str, bytes]:
    files = {f"{PACKAGE}/{path.name}": path.read_bytes() for path in _plain(_folder(PACKAGE))}
    for part in PARTS:
        files |= {
            f"{PACKAGE}/{part}/{name}": data for name, data in _walk(_folder(f"{PACKAGE}.{part}"), f"{part}/")
        }
    return files | {f"{name}.py": _SHIM.format(name=name).encode() for name in SHIMS}


def _folder(package: str) -> Path:
    """Return a package's folder; those of sub-packages are beside ``divprune_edge`` in a clone, inside it installed."""
    file = importlib.import_module(package).__file__
    assert file is not None, "a package with an __init__.py has a file"
    return Path(file).resolve().parent


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.split("/"))
        left_out = any(f"{prefix}{name}".startswith(out) for out in _LEFT_OUT)
        if path.is_file() and not hidden and not left_out and path.suffix != ".pyc":
            yield name, path.read_bytes()


def _plain(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in (".py", ".typed")]


def _project(installed: Distribution) -> str:
    return _PROJECT.format(
        name=DISTRIBUTION,
        version=__version__,
        licence=installed.metadata["License-Expression"],
        python=installed.metadata["Requires-Python"],
        dependencies=json.dumps(installed_dependencies()),  # a JSON list of plain strings is one of TOML
        command="divprune-edge",
        package=PACKAGE,
        shims=json.dumps(SHIMS),
    )


def _installed() -> Distribution:
    try:
        return distribution("divprune-edge")
    except PackageNotFoundError:
        raise UserError(
            "A package takes its dependencies from the installed divprune-edge, and none is: install it with "
            "'pip install -e .' in the clone.",
            code="installation-missing",
        ) from None
