"""What was built: a small JSON file beside the library, written by the build and checked by the loader."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.strict_json import is_file, read_json

LIBRARY = "libdivprune_plugins.so"
RECORD = "libdivprune_plugins.json"
EDGE_LLM_OBJECT = "divprune_edge_llm.o"
DEFAULT_FOLDER = Path(__file__).resolve().parent / "lib"
"""Where both are, in the package, unless another folder is named."""
ABI_VERSION = 2
"""The C interface that the Python code expects; ``DIVPRUNE_ABI_VERSION`` in ``csrc/max_min.h``."""


@dataclass(frozen=True)
class LibraryRecord:
    """Facts about a built library.

    ``architectures`` are compute capabilities without the dot (``87``), ``cuda`` and ``tensorrt`` the versions of
    the compiler and of the headers; ``tensorrt`` is None for a library without the wrapper, ``edge_llm`` where there
    is no object for TensorRT Edge-LLM beside it.
    """

    version: str
    abi: int
    sha256: str
    architectures: tuple[int, ...]
    cuda: str
    tensorrt: str | None
    edge_llm: str | None = None

    def write(self, folder: Path) -> None:
        """Write the record to ``folder``."""
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")


def read_record(folder: Path) -> LibraryRecord:
    """Read the record in ``folder``.

    Raises:
        UserError: there is none, or it cannot be understood.
    """
    path = folder / RECORD
    again = "build the library again with 'python -m plugins build'"
    if not is_file(path):
        raise UserError(
            f"'{path}' is missing, so the plugin library beside it cannot be checked: build it again with "
            "'python -m plugins build'.",
            code="plugin-record-invalid",
        )
    data = read_json(path, code="plugin-record-invalid", advice=again)
    try:
        return LibraryRecord(
            version=str(data["version"]),
            abi=int(data["abi"]),
            sha256=str(data["sha256"]),
            architectures=tuple(int(architecture) for architecture in data["architectures"]),
            cuda=str(data["cuda"]),
            tensorrt=None if data["tensorrt"] is None else str(data["tensorrt"]),
            edge_llm=None if data.get("edge_llm") is None else str(data["edge_llm"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{path}' cannot be understood ({error}): {again}.",
            code="plugin-record-invalid",
        ) from error


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
