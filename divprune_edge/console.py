"""Run a typer application so that every mistake ends in one sentence and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click
import typer

from divprune_edge.errors import UserError

INTERRUPTED = 130


def run(app: typer.Typer, arguments: Sequence[str] | None = None, *, program: str) -> NoReturn:
    """Run ``app`` and exit: 0 on success, 2 on a user's mistake, 130 on Ctrl-C.

    Args:
        app: the application.
        arguments: command line without the program's name; None takes ``sys.argv``.
        program: name shown in the usage line.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if arguments is None else list(arguments), prog_name=program, standalone_mode=False
        )
    except UserError as error:
        fail(str(error))
    except click.UsageError as error:
        hint = error.ctx.command_path if error.ctx is not None else program
        fail(f"{error.format_message().rstrip('.')}; see '{hint} --help'.")
    except click.ClickException as error:
        fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str) -> NoReturn:
    """Print ``error: message`` on one line of standard error and exit with code 2."""
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(2)
