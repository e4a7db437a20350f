"""Commands in sentences, so that they can be typed where they are read."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from divprune_edge.version import __version__

_PYTHON = re.compile(r"(?<![\w./-])python(?= -m (?:divprune_edge|export|pip|plugins|runtime)\b)")


def as_typed(text: str) -> str:
    """Return ``text`` with every ``python -m …`` of ours as this interpreter is called from here."""
    return _PYTHON.sub(lambda found: interpreter(), text)


def interpreter() -> str:
    """Return ``python`` where that is this interpreter, else its path, from this folder if it lies in it."""
    if not sys.executable:
        return "python"
    own = Path(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and own.parent.samefile(Path(found).parent):
            return name
    here = Path.cwd()
    return shlex.quote(
        str(own.relative_to(here) if here != Path(here.anchor) and own.is_relative_to(here) else own)
    )


def install(*extras: str) -> str:
    """Return the command that installs extras: no registry has the package, so from the clone or the wheel's file."""
    names = ",".join(extras)
    if (Path(__file__).resolve().parent.parent / "pyproject.toml").is_file():
        return f"python -m pip install -e '.[{names}]' in the clone"
    return f"python -m pip install './divprune_edge-{__version__}-py3-none-any.whl[{names}]' where the wheel lies"


def quoted(path: str | os.PathLike[str]) -> str:
    """Return a path as a shell reads it back."""
    return shlex.quote(os.fspath(path))
