"""What was built: a small JSON file beside each library, written by the build and checked by the loader."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from divprune_edge.errors import UserError
from divprune_edge.files import write_whole
from divprune_edge.strict_json import is_file, read_json

LIBRARY = "libdivprune_plugins.so"
"""The kernels for a GPU and the TensorRT plugin."""
EDGE_LLM_OBJECT = "divprune_edge_llm.o"
"""What a build of TensorRT Edge-LLM links."""
OPERATORS = "libdivprune_onnxruntime.so"
"""The operators of ONNX Runtime, for the CPU and, where nvcc was there, for CUDA."""
DEFAULT_FOLDER = Path(__file__).resolve().parent / "lib"
"""Where they are, in the package, unless another folder is named."""
ABI_VERSION = 4
"""The C interface that the Python code expects; ``DIVPRUNE_ABI_VERSION`` in ``csrc/max_min.h``."""


@dataclass(frozen=True)
class LibraryRecord:
    """Facts about a built library.

    ``architectures`` are compute capabilities without the dot (``87``), ``cuda`` and ``tensorrt`` the versions of
    the compiler and of the headers; ``tensorrt`` is None for a library without the wrapper, ``edge_llm`` where there
    is no object for TensorRT Edge-LLM beside it. ``cuda`` is None for operators of the CPU alone, and ``onnxruntime``
    is the version of the C interface that the operators' header has.
    """

    version: str
    abi: int
    sha256: str
    architectures: tuple[int, ...]
    cuda: str | None
    tensorrt: str | None
    edge_llm: str | None = None
    onnxruntime: int | None = None

    def write(self, folder: Path, library: str = LIBRARY) -> None:
        """Write the record to ``folder``, where ``library`` is."""
        write_whole(record_of(folder / library), json.dumps(asdict(self), indent=2) + "\n")


def record_of(library: Path) -> Path:
    """Return where the record of a library is."""
    return library.with_suffix(".json")


def read_record(folder: Path, library: str = LIBRARY) -> LibraryRecord:
    """Read the record of ``library`` in ``folder``.

    Raises:
        UserError: there is none, or it cannot be understood.
    """
    path = record_of(folder / library)
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
            cuda=None if data["cuda"] is None else str(data["cuda"]),
            tensorrt=None if data["tensorrt"] is None else str(data["tensorrt"]),
            edge_llm=None if data.get("edge_llm") is None else str(data["edge_llm"]),
            onnxruntime=None if data.get("onnxruntime") is None else int(data["onnxruntime"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"'{path}' cannot be understood ({error}): {again}.",
            code="plugin-record-invalid",
        ) from error


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
