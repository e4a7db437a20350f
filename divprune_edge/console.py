"""Run a typer application so that every mistake ends in one sentence and exit code 2."""

from __future__ import annotations

import atexit
import codecs
import errno
import gc
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer

from divprune_edge.errors import DivpruneError
from divprune_edge.hints import as_typed
from divprune_edge.version import __version__

INTERRUPTED = 130

# The code of a command line that cannot be understood.
USAGE = "usage"

# typer raises click's exceptions, its own copy of them in newer releases: these are the ones it really raises.
_UsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _UsageError.__base__


_ESCAPES = "divprune_edge.escapes"
_CLOSED = {"encoding": "utf-8", "errors": "replace", "isatty": lambda: False, "closed": False}


class OutputLost(Exception):
    """Standard output takes no more: its disk is full, its reader is gone, or it is closed.

    No ``OSError``, so that nobody takes it for one of the files that are being written.
    """


class _Output:
    """A standard stream whose failures are told apart from all others."""

    def __init__(self, stream: Any, *, matters: bool) -> None:
        """Where ``matters`` is False, what cannot be written is dropped: it is about the work and not its result."""
        self._stream, self._matters = stream, matters
        self.lost: BaseException | None = None

    def write(self, text: str) -> int:
        self._do("write", text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._do("flush")

    def _do(self, what: str, *given: Any) -> None:
        if self.lost is not None:
            return
        try:
            if self._stream is None:
                if given and given[0]:
                    raise OSError(9, "it is closed")
                return
            getattr(self._stream, what)(*given)
        except (OSError, ValueError) as error:
            if isinstance(error, UnicodeError):
                raise
            self.lost = error
            _forget(self._stream)
            if self._matters:
                raise OutputLost(getattr(error, "strerror", None) or str(error)) from error

    def __getattr__(self, name: str) -> Any:
        if self._stream is None and name in _CLOSED:
            return _CLOSED[name]
        return getattr(self._stream, name)


def _forget(stream: Any) -> None:
    """Let what a stream still holds go nowhere, or the interpreter would try again at its end, and complain."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Return what an encoding lacks as JSON writes it: ``\\u2192``, so that JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)), error.end


@contextmanager
def guarded_output() -> Iterator[None]:
    """Let standard output fail in one sentence and standard error in silence, and no character stop either.

    Raises:
        SystemExit: 1 where standard output cannot be written, 0 where its reader has gone (as ``head`` does).
    """
    codecs.register_error(_ESCAPES, _escape)
    before = sys.stdout, sys.stderr
    for stream in before:
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=_ESCAPES)
    out = _Output(sys.stdout, matters=True)
    sys.stdout, sys.stderr = out, _Output(sys.stderr, matters=False)
    try:
        try:
            yield
        finally:
            out.flush()
    except OutputLost as error:
        if isinstance(out.lost, BrokenPipeError):
            sys.exit(0)
        fail(
            f"Standard output cannot be written ({error}): make room where it goes, or send it elsewhere.",
            1,
            code="output-lost",
        )
    finally:
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def run(app: typer.Typer, arguments: Sequence[str] | None = None, *, program: str) -> NoReturn:
    """Run ``app`` and exit: 0 on success, 1 on a failure, 2 on a user's mistake, 130 on Ctrl-C.

    Args:
        app: the application.
        arguments: command line without the program's name; None takes ``sys.argv``.
        program: name shown in the usage line.
    """
    with guarded_output():
        _run(app, arguments, program)
    raise AssertionError("it exits")


def _run(app: typer.Typer, arguments: Sequence[str] | None, program: str) -> NoReturn:
    # What is loaded stays until the end: to look through it after every 700 new objects, and once more before all of it
    # is given back, takes a fifth of a start.
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in (["--version"], ["-V"]):
        print(f"divprune-edge {__version__}")
        sys.exit(0)
    command = typer.main.get_command(app)
    if "--help" in given or not given:
        _show_flags_bare(command, given)
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
        fail(f"{_in_our_words(error.format_message())}{_given(error)}; see '{hint} --help'.", code=USAGE)
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
    except OSError as error:
        _fail_for_path(error)
    if code == INTERRUPTED:  # newer typer returns this itself
        sys.stderr.write("interrupted\n")
    sys.exit(code if isinstance(code, int) else 0)


def _show_flags_bare(command: Any, given: Sequence[str]) -> None:
    """Leave ``<bool>`` out of the help of options without a value, beside which it looks as if they took one."""
    context = command.context_class(command)
    for parameter in command.get_params(context):
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    name = next((one for one in given if not one.startswith("-")), None)
    if name is not None and hasattr(command, "get_command"):
        found = command.get_command(context, name)
        if found is not None:
            _show_flags_bare(found, given[given.index(name) + 1 :])


def printable(text: str) -> str:
    """Return ``text`` with U+FFFD for each character that could move a terminal's cursor."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def literal(value: object) -> str:
    """Return what rich prints as ``value`` reads, which may look like markup."""
    from rich.markup import escape

    return escape(printable(str(value)))


def _fail_for_path(error: OSError) -> NoReturn:
    if error.errno != errno.ENAMETOOLONG:
        raise error
    fail(f"The name '{error.filename}' is longer than any file's: give another one.", code="path-too-long")


def _in_our_words(message: str) -> str:
    """Return typer's message as a part of a sentence, without what its parser says twice."""
    message = re.sub(r"\. Did you mean (.+)\?$", r" (did you mean \1?)", message.rstrip("."))
    message = re.sub(r", unable to parse string as an? \w+$", "", message)
    return (
        message.replace("Input should be a valid integer", "expected an integer")
        .replace("Input should be a valid", "expected a")
        .replace("Input should be", "expected")
    )


def _given(error: BaseException) -> str:
    """Name the value that could not be read, where the message does not: newer typer keeps it in the cause."""
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    return f" (given: {details[0]['input']})" if details and "input" in details[0] else ""


def tell(message: str, *, code: str) -> None:
    """Print ``error[code]: message`` on one line of standard error; commands in it are as typed from here."""
    sys.stderr.write(f"error[{code}]: {printable(' '.join(as_typed(message).split()))}\n")


def fail(message: str, exit_code: int = 2, *, code: str) -> NoReturn:
    """Tell what is wrong, and exit."""
    tell(message, code=code)
    sys.exit(exit_code)
