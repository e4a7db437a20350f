"""A tar file that is the same bytes for the same content, and either whole or not there.

Plain tar: gzip takes 9 % off the demo's fp16 weights and 17 % off its int4 ones at some 20 MB a second, which is ten
minutes for 14 GB; a plain one is packed and unpacked as fast as the storage goes.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from divprune_edge.errors import UserError
from divprune_edge.manifest import RESTORE
from divprune_edge.scratch import scratch

EPOCH = 315532800
"""1980-01-01, the modification time of every member: the earliest that a wheel can hold too."""
CHUNK = 64 * 2**20
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """One file of the archive: ``content`` is its bytes or the file that has them.

    ``sha256`` is what the bytes must have; None takes them as they are.
    """

    name: str
    content: bytes | Path
    sha256: str | None = None
    executable: bool = False

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def digest_of(member: Member) -> str:
    """Return the sha256 that the member has, or must have."""
    if member.sha256 is not None:
        return member.sha256
    if isinstance(member.content, bytes):
        return hashlib.sha256(member.content).hexdigest()
    with member.content.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def archive_size(members: Sequence[Member]) -> int:
    """Return the bytes of the tar: content in whole blocks, headers, the end."""
    padded = sum(-(-member.size // _BLOCK) * _BLOCK + 3 * _BLOCK for member in members)
    return padded + tarfile.RECORDSIZE


def chunks(members: Sequence[Member]) -> int:
    """Return how often :func:`write_archive` reports progress."""
    return sum(max(1, -(-member.size // CHUNK)) for member in members)


def write_archive(
    path: Path, top: str, members: Sequence[Member], progress: Callable[[str], None] = lambda name: None
) -> None:
    """Write ``members`` under the folder ``top``; content is streamed, never held.

    Args:
        path: the archive.
        top: name of the one folder that it unpacks to.
        members: in this order.
        progress: called with a member's name for each ``CHUNK`` of it.

    Raises:
        UserError: a file is not the one that its sha256 says, the disk is full, or ``path`` cannot be written.
    """
    with _whole(path) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(f"{top}/{member.name}")
            info.size = member.size
            info.mtime = EPOCH
            info.mode = 0o755 if member.executable else 0o644
            with _Checked(member, progress) as content:
                tar.addfile(info, content)
                content.finish()


def check_room(path: Path, needed: int) -> None:
    """Check that the file system of ``path`` has room for ``needed`` bytes.

    Raises:
        UserError: it has not; both sizes are named.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"The package needs {needed / 2**20:,.0f} MiB, but '{folder}' has only {free / 2**20:,.0f} MiB free: "
            "free some, or choose a place with --output.",
            code="disk-too-full",
        )


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a temporary file beside ``path`` that becomes it when the block ends well, else nothing."""
    path = path.absolute()
    busy = f"'{path}' is being written by another process: wait for it, or choose another --output."
    stack = ExitStack()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work = stack.enter_context(scratch(path.parent, path.name, busy=busy))
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be written ({error.strerror}): choose another --output.",
            code="output-unwritable",
        ) from error
    with stack:
        try:
            partial = work / path.name
            with partial.open("wb") as stream:
                yield stream
            partial.chmod(0o644)
            partial.replace(path)
        except OSError as error:
            raise UserError(
                f"Writing '{path}' failed ({error.strerror or error}); nothing was left behind.",
                code="output-write-failed",
            ) from error


class _Checked(io.RawIOBase):
    """A member's content as a stream that hashes what is read of it."""

    def __init__(self, member: Member, progress: Callable[[str], None]) -> None:
        super().__init__()
        self._member = member
        self._progress = progress
        self._digest = hashlib.sha256()
        self._unreported = 0
        content = member.content
        self._stream: IO[bytes] = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._digest.update(block)
        self._unreported += len(block)
        while self._unreported >= CHUNK:
            self._unreported -= CHUNK
            self._progress(self._member.name)
        return block

    def finish(self) -> None:
        """Compare what was read with what was promised."""
        if self._unreported or self._member.size == 0:
            self._progress(self._member.name)
        if self._member.sha256 not in (None, self._digest.hexdigest()):
            raise UserError(
                f"'{self._member.name}' is not the file that was exported (its sha256 differs from the manifest's): "
                f"{RESTORE}.",
                code="bundle-file-changed",
            )

    def close(self) -> None:
        self._stream.close()
        super().close()
