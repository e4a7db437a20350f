"""Run a typer application so that every mistake ends in one sentence and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from divprune_edge.errors import DivpruneError
from divprune_edge.hints import as_typed

INTERRUPTED = 130

# The code of a command line that cannot be understood.
USAGE = "usage"

# typer raises click's exceptions, its own copy of them in newer releases: these are the ones it really raises.
_UsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _UsageError.__base__


def run(app: typer.Typer, arguments: Sequence[str] | None = None, *, program: str) -> NoReturn:
    """Run ``app`` and exit: 0 on success, 1 on a failure, 2 on a user's mistake, 130 on Ctrl-C.

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
    except DivpruneError as error:
        fail(str(error), error.exit_code, code=error.code)
    except _UsageError as error:
        if not error.format_message():  # the help was shown because nothing was asked for
            sys.exit(2)
        hint = error.ctx.command_path if error.ctx is not None else program
        fail(f"{error.format_message().rstrip('.')}{_given(error)}; see '{hint} --help'.", code=USAGE)
    except _ClickException as error:
        fail(error.format_message(), code=USAGE)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ImportError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        code = INTERRUPTED  # Ctrl-C while a compiled module, such as ONNX Runtime's, was being loaded
    except BrokenPipeError:
        sys.exit(0)
    if code == INTERRUPTED:  # newer typer returns this itself
        sys.stderr.write("interrupted\n")
    sys.exit(code if isinstance(code, int) else 0)


def _given(error: BaseException) -> str:
    """Name the value that could not be read, where the message does not: newer typer keeps it in the cause."""
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    return f" (given: {details[0]['input']})" if details and "input" in details[0] else ""


def fail(message: str, exit_code: int = 2, *, code: str) -> NoReturn:
    """Print ``error[code]: message`` on one line of standard error and exit; commands in it are as typed from here."""
    sys.stderr.write(f"error[{code}]: {' '.join(as_typed(message).split())}\n")
    sys.exit(exit_code)
