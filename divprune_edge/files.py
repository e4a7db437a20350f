"""Files that are either whole or not there: pages, images, tables, records."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from divprune_edge.errors import UserError


def check_place(path: Path, option: str) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises:
        UserError: it is a folder, or its folder is not there; the sentence names the option.
    """
    if path.is_dir():
        why = "it is a folder"
    elif not path.absolute().parent.is_dir():
        why = f"there is no folder '{path.parent}'"
    else:
        return
    raise UserError(f"'{path}' cannot be written ({why}): choose another {option}.", code="output-unwritable")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: a reader sees the old one or the new one, and a full disk leaves the old one.

    Text is UTF-8, characters that it cannot hold (of file names that are none) as escapes. A device or a pipe is
    written to as it is; so is a file in a folder where no other can be made.

    Raises:
        OSError: it cannot be written.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    target = path.resolve() if path.is_symlink() else path
    partial = target.with_name(f".{secrets.token_hex(8)}.divprune-part")
    try:
        with partial.open("xb") as stream:
            stream.write(data)
        if target.exists():
            partial.chmod(target.stat().st_mode & 0o7777)
    except PermissionError:
        partial.unlink(missing_ok=True)
        if not os.access(target, os.W_OK):
            raise
        target.write_bytes(data)
        return
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    try:
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
