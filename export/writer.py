"""Writing a bundle so that it is either whole or not there; its files and what made it, as the manifest has them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from divprune_edge.errors import UserError
from divprune_edge.export.streaming import FollowingHash, computed_ahead
from divprune_edge.files import write_whole
from divprune_edge.manifest import MANIFEST, FileInfo, GraphInfo, Manifest, TensorInfo
from divprune_edge.scratch import give_way, scratch
from divprune_edge.version import __version__

Progress = Callable[[str], None]
"""Called with the name of each weight as it is written."""

# Graph files, tokenizer, manifest and file-system overhead beside the weights.
_MARGIN = 64 * 2**20
_EXTERNAL_ABOVE = 1024
_DTYPE_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int64",
    ir.DataType.INT32: "int32",
    ir.DataType.UINT8: "uint8",
    ir.DataType.BOOL: "bool",
}


def check_output(output: Path, force: bool) -> None:
    """Check that a bundle may be written to ``output``.

    Raises:
        UserError: something is there already, or ``--force`` would delete what is not a bundle.
    """
    if not (output.exists() or output.is_symlink()):
        return
    if not force:
        raise UserError(
            f"'{output}' exists already: choose another --output, or replace it with --force.",
            code="output-exists",
        )
    is_bundle = output.is_dir() and (output / MANIFEST).is_file()
    if not is_bundle and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(
            f"'{output}' is not a bundle, so --force will not delete it: choose another --output.",
            code="output-not-a-bundle",
        )


def check_disk(output: Path, weight_bytes: int) -> None:
    """Check that the file system of ``output`` has room for a bundle.

    Raises:
        UserError: it has not; both sizes are named.
    """
    folder = output.absolute().parent
    while not folder.exists():
        folder = folder.parent
    needed, free = weight_bytes + _MARGIN, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The bundle needs {needed / 2**20:,.0f} MiB, but '{folder}' has only {free / 2**20:,.0f} MiB free.",
            code="disk-too-full",
        )


@contextmanager
def staged(output: Path, *, force: bool = True) -> Iterator[Path]:
    """Give a temporary folder beside ``output`` that becomes ``output`` when the block ends well.

    Whatever ends the block early, an error or Ctrl-C, leaves neither the folder nor a half bundle; what a process that
    was killed leaves, the next one removes. One process at a time writes an ``output``.

    Raises:
        UserError: the disk is full or the place cannot be written, another process is writing it, or something is
            there by now and ``force`` is not given.
    """
    output = output.absolute()
    busy = f"'{output}' is being written by another process: wait for it, or choose another --output."
    with ExitStack() as stack:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            work = stack.enter_context(scratch(output.parent, output.name, busy=busy))
            folder = work / "bundle"
            folder.mkdir()
        except OSError as error:
            raise UserError(
                f"'{output}' cannot be written ({error.strerror}): choose another --output.",
                code="output-unwritable",
            ) from error
        check_output(output, force)
        try:
            yield folder
            folder.chmod(0o755)
            _replace(folder, output, work)
        except OSError as error:
            raise UserError(
                f"Writing '{output}' failed ({error.strerror or error}); nothing was left behind.",
                code="output-write-failed",
            ) from error


def _replace(folder: Path, output: Path, work: Path) -> None:
    """Move ``folder`` to ``output``; an older bundle there stays until the new one is whole."""
    if not output.exists():
        folder.rename(output)
        return
    kept = give_way(output, work)
    try:
        folder.rename(output)
    except BaseException:
        kept.rename(output)
        raise


def write_graph(
    model: ir.Model,
    folder: Path,
    file: str,
    progress: Progress | None = None,
    hashed: dict[str, FileInfo] | None = None,
) -> GraphInfo:
    """Write a model, weights as external data beside it, and return its entry in the manifest.

    Args:
        model: the graph.
        folder: of the bundle.
        file: path of the graph in it.
        progress: told the name of each weight.
        hashed: gets the entry of the weights' file, hashed while it was written.
    """
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_suffix(".data")
    with FollowingHash(data) as following, computed_ahead(model):

        def report(tensor: ir.TensorProtocol, place: Any) -> None:
            following.reach(place.offset)
            if progress is not None:
                progress(tensor.name or "")

        ir.save(
            model,
            path,
            external_data=data.name,
            size_threshold_bytes=_EXTERNAL_ABOVE,
            alignment=4096,
            callback=report,
        )
        has_data = data.is_file()
        if has_data and data.stat().st_size == 0:
            data.unlink()
            has_data = False
        name = data.relative_to(folder).as_posix()
        if has_data and hashed is not None:
            hashed[name] = FileInfo(size=data.stat().st_size, sha256=following.finish())
    return GraphInfo(
        file=file,
        data=(name,) if has_data else (),
        inputs=tuple(_tensor_info(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_info(value) for value in model.graph.outputs),
    )


def _tensor_info(value: ir.Value) -> TensorInfo:
    assert value.name and value.dtype is not None and value.shape is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorInfo(name=value.name, dtype=_DTYPE_NAMES[value.dtype], shape=shape)


def file_info(path: Path) -> FileInfo:
    """Return size and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256") if hasattr(hashlib, "file_digest") else _digest(stream)
    return FileInfo(size=path.stat().st_size, sha256=digest.hexdigest())


def _digest(stream: Any) -> Any:
    """``hashlib.file_digest`` for Python 3.10."""
    digest = hashlib.sha256()
    while chunk := stream.read(2**20):
        digest.update(chunk)
    return digest


def hash_files(folder: Path, known: Mapping[str, FileInfo] | None = None) -> dict[str, FileInfo]:
    """Return the ``files`` of a manifest: every file under ``folder`` but the manifest, by relative path.

    Args:
        folder: of the bundle.
        known: entries that need not be computed again.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: (known or {}).get(name) or file_info(path) for name, path in names.items()}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` in one step: a reader sees the old one or the new one."""
    write_whole(folder / MANIFEST, manifest.to_json())


def tool_versions() -> dict[str, str]:
    """Return the versions of what made the bundle."""
    versions = {"divprune-edge": __version__}
    for package in ("onnx-ir", "numpy", "safetensors", "torch", "transformers", "onnxruntime"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
