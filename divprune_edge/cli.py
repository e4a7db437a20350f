"""``divprune-edge``: the same commands as ``python -m export``, ``plugins`` and ``runtime``, from any folder."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NoReturn

import typer

from divprune_edge.console import run


def _build() -> typer.Typer:
    from divprune_edge.plugins.cli import app as plugins_app
    from divprune_edge.runtime.cli import app as runtime_app

    app = typer.Typer(
        name="divprune-edge",
        help="From a vision-language checkpoint to a fast answer.",
        no_args_is_help=True,
        add_completion=False,
    )
    if find_spec("divprune_edge.export") is not None:  # a device has the runtime alone
        from divprune_edge.export.cli import app as export_app

        app.add_typer(export_app, name="export")
    app.add_typer(plugins_app, name="plugins")
    app.add_typer(runtime_app, name="runtime")
    return app


def main() -> NoReturn:
    """Entry point of the ``divprune-edge`` command."""
    run(_build(), program="divprune-edge")
