"""``divprune-edge``: the same commands as ``python -m export``, ``plugins`` and ``runtime``, from any folder."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NoReturn

from divprune_edge.commands import application
from divprune_edge.console import run

app = application(
    {
        name: f"divprune_edge.{name}.cli:app"
        for name in ("export", "plugins", "runtime")
        if find_spec(f"divprune_edge.{name}") is not None  # a device has the runtime alone
    },
    help="From a vision-language checkpoint to a fast answer.",
)


def main() -> NoReturn:
    """Entry point of the ``divprune-edge`` command."""
    run(app, program="divprune-edge")
