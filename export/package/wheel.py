"""The runtime as a wheel, packed from the modules that are running: the same bytes from a clone and from an install.

It holds everything but the export and the demo's weights and trainer: answering, profiling, the plugin's sources. What
it needs is read from the installed metadata. A wheel is a zip with a list of its files (PyPA's binary distribution
format 1.0), so no build tool, network or source tree is needed. It is called ``divprune-edge-runtime``, because it is
not the whole of divprune-edge.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

import divprune_edge
from divprune_edge import __version__
from divprune_edge.errors import UserError

DISTRIBUTION = "divprune-edge-runtime"
PACKAGE = "divprune_edge"
PARTS = ("models", "plugins", "processing", "runtime")
"""Sub-packages that the runtime consists of, beside the modules of ``divprune_edge`` itself."""
SHIMS = ("plugins", "runtime")
PLUGIN_SOURCES = ("CMakeLists.txt", "csrc")

_LEFT_OUT = ("models/demo/checkpoint/", "models/demo/trainer/", "plugins/lib/")
_SHIM = """\
\"\"\"Forwards ``python -m {name} …`` to ``divprune_edge.{name}``; nothing else lives under this name.\"\"\"

from divprune_edge.{name}.cli import main

if __name__ == "__main__":
    main()
"""
_TIME = (1980, 1, 1, 0, 0, 0)


def wheel_name() -> str:
    """Return the file name of the wheel."""
    return f"{DISTRIBUTION.replace('-', '_')}-{__version__}-py3-none-any.whl"


def runtime_wheel() -> bytes:
    """Return the wheel of the runtime."""
    files = dict(sorted(_files().items()))
    info = f"{DISTRIBUTION.replace('-', '_')}-{__version__}.dist-info"
    files[f"{info}/METADATA"] = _metadata().encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: divprune-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\ndivprune-edge = divprune_edge.cli:main\n"
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def plugin_sources() -> dict[str, bytes]:
    """Return the plugin's CMake project by relative path, for those who would rather run CMake."""
    folder = _folder("plugins")
    return {
        name: data
        for name, data in _walk(folder)
        if any(name == part or name.startswith(f"{part}/") for part in PLUGIN_SOURCES)
    }


def _files() -> dict[str, bytes]:
    ground = Path(divprune_edge.__file__).resolve().parent
    files = {f"{PACKAGE}/{path.name}": path.read_bytes() for path in _plain(ground)}
    for part in PARTS:
        files |= {f"{PACKAGE}/{part}/{name}": data for name, data in _walk(_folder(part), f"{part}/")}
    return files | {f"{name}.py": _SHIM.format(name=name).encode() for name in SHIMS}


def _folder(part: str) -> Path:
    """Return the folder of a sub-package: beside ``divprune_edge`` in a clone, inside it when installed."""
    file = importlib.import_module(f"{PACKAGE}.{part}").__file__
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


def dependencies() -> list[str]:
    """Return what divprune-edge needs without any extra, as its installed metadata says."""
    return [entry for entry in _installed().get_all("Requires-Dist") or [] if "extra ==" not in entry]


def _metadata() -> str:
    installed = _installed()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {DISTRIBUTION}",
        f"Version: {__version__}",
        "Summary: Runtime of divprune-edge: exported bundles into answers, with ONNX Runtime or TensorRT.",
        f"License: {installed['License-Expression']}",
        f"Requires-Python: {installed['Requires-Python']}",
        *(f"Requires-Dist: {dependency}" for dependency in dependencies()),
    ]
    return "\n".join(lines) + "\n"


def _installed() -> PackageMetadata:
    try:
        return metadata("divprune-edge")
    except PackageNotFoundError:
        raise UserError(
            "A package takes its dependencies from the installed divprune-edge, and none is: install it with "
            "'pip install -e .' in the clone.",
            code="installation-missing",
        ) from None


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
