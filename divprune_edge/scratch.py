"""Folders for work in progress: held by a lock while their process lives, and removed by the next one where it died.

::

    .NAME.divprune/lock        held by the process
    .NAME.divprune/owner       a number that no other has
    .NAME.divprune/work/       what is being made
    .NAME.divprune/replaced/   what it takes the place of, until it has

One such folder stands for one NAME: a second process waits, or is refused. It takes its name when its lock is held, and
loses it before it is removed, so that whoever sees it can tell by the lock alone whether its process lives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from divprune_edge.errors import UserError

_SUFFIX, _NEW, _GONE = ".divprune", ".divprune-new", ".divprune-gone"
_LOCK, _OWNER, _WORK, _REPLACED = "lock", "owner", "work", "replaced"
_WAIT_SECONDS = 600
_STEP_SECONDS = 0.05
# Between its making and its lock lies a moment; nothing of value is in it.
_NEW_SECONDS = 3600


@contextmanager
def scratch(parent: Path, name: str, *, busy: str, wait: bool = False) -> Iterator[Path]:
    """Give an empty folder in ``parent`` that no other process has under this name, and remove it at the end.

    What processes that are no more have left in ``parent`` is removed first; what they were about to replace and had
    taken away comes back.

    Args:
        parent: an existing folder, on the file system where the result will lie.
        name: what is being made: one process at a time.
        busy: the sentence where another process has it.
        wait: wait for the other process, ten minutes at most, before that sentence.

    Raises:
        UserError: another process has it (code ``output-in-use``).
        OSError: the folder cannot be made.
    """
    from filelock import FileLock

    remove_leftovers(parent)
    made = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_NEW, dir=parent))
    lock = FileLock(made / _LOCK)
    place = parent / f".{name}{_SUFFIX}"
    try:
        lock.acquire(blocking=False)
        (made / _OWNER).write_text(secrets.token_hex(16), encoding="ascii")
        (made / _WORK).mkdir()
        (made / _REPLACED).mkdir()
        _take(made, place, busy, wait)
        made = place
        yield place / _WORK
    finally:
        _remove(made)
        lock.release(force=True)


def give_way(path: Path, work: Path) -> Path:
    """Move what lies at ``path`` beside ``work``, where it is kept until the work ends; return where it is now.

    If this process dies before something new is at ``path``, the next one moves it back.
    """
    kept = work.parent / _REPLACED / path.name
    path.rename(kept)
    return kept


def remove_leftovers(parent: Path) -> None:
    """Remove what processes that are no more left in ``parent``; whatever cannot be is left."""
    with contextlib.suppress(OSError):
        for path in parent.glob(f".*{_SUFFIX}*"):
            if not _is_ours(path):
                continue
            if path.name.endswith(_GONE):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.endswith(_NEW):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _NEW_SECONDS:
                        shutil.rmtree(path, ignore_errors=True)
            elif path.name.endswith(_SUFFIX):
                _remove_if_dead(path)


def _take(made: Path, place: Path, busy: str, wait: bool) -> None:
    """Give ``made`` its name, once no living process has it."""
    until = time.monotonic() + (_WAIT_SECONDS if wait else 0)
    while True:
        try:
            made.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _remove_if_dead(place):
            continue
        if time.monotonic() >= until:
            raise UserError(busy, code="output-in-use")
        time.sleep(_STEP_SECONDS)


def _remove_if_dead(path: Path) -> bool:
    """Remove a folder whose process is no more; return whether the name is free now."""
    from filelock import FileLock, Timeout

    if not path.is_dir():
        return True
    # None in a folder that the library made for the lock, because another process had just removed the one that was
    # asked about: nobody's.
    owner = _owner(path)
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):
        return False
    try:
        # The lock may be that of a folder which was removed and replaced in the meantime.
        if _owner(path) != owner:
            return False
        for kept in (path / _REPLACED).glob("*"):
            if not os.path.lexists(path.parent / kept.name):
                kept.rename(path.parent / kept.name)
        _remove(path)
    except OSError:
        return False
    finally:
        lock.release(force=True)
    return True


def _remove(path: Path) -> None:
    """Take the folder's name from it, and then what is in it."""
    gone = path.with_name(f"{path.name}-{secrets.token_hex(4)}{_GONE}")
    with contextlib.suppress(OSError):
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _owner(path: Path) -> str | None:
    try:
        return (path / _OWNER).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _is_ours(path: Path) -> bool:
    """Whether this is a folder of this user, and no link."""
    try:
        return (
            path.is_dir()
            and not path.is_symlink()
            and (os.name == "nt" or path.stat().st_uid == os.geteuid())
        )
    except OSError:
        return False
