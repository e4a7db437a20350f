"""How mistakes are told: one sentence on standard error, the right exit code, no traceback."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer

from divprune_edge import __version__
from divprune_edge.console import run
from divprune_edge.errors import DivpruneError, UserError, did_you_mean


def outcome(
    body: Callable[[], object], capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    app = typer.Typer(add_completion=False, no_args_is_help=True)

    @app.command()
    def work(number: int = 0) -> None:
        body()

    @app.command()
    def other() -> None: ...

    with pytest.raises(SystemExit) as exit_info:
        run(app, arguments, program="program")
    return int(exit_info.value.code or 0), capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(lambda: None, capsys, "work") == (0, "")


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(
        raising(UserError("K is 0,\nexpected more.", code="keep-out-of-range")), capsys, "work"
    ) == (
        2,
        "error[keep-out-of-range]: K is 0, expected more.\n",
    )


def test_a_failure_that_is_not_the_users_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(DivpruneError("It differs.", code="verification-failed")), capsys, "work") == (
        1,
        "error[verification-failed]: It differs.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("work", "--nope"), "No such option: --nope"),
        (("work", "--number", "many"), "--number"),
        (("work", "--number", "many"), "many"),
        (("werk",), "No such command 'werk' (did you mean 'work'?); see"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = outcome(lambda: None, capsys, *arguments)
    assert code == 2
    assert told in text
    assert text.count("\n") == 1
    assert text.rstrip().endswith("--help'.")
    assert "Input should be" not in text, "the parser's words"


@pytest.mark.parametrize("given", ["--version", "-V"])
def test_every_program_says_its_version(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(typer.Typer(), [given], program="program")
    assert (ended.value.code, capsys.readouterr().out) == (0, f"divprune-edge {__version__}\n")


def test_the_help_of_a_flag_shows_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def work(plain: bool = False, count: int = 3) -> None: ...

    with pytest.raises(SystemExit):
        run(app, ["--help"], program="program")
    shown = capsys.readouterr().out
    assert "--plain" in shown and "--count" in shown and "bool" not in shown.lower()


def test_nothing_asked_shows_the_help_without_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = outcome(lambda: None, capsys)
    assert code == 2
    assert "error" not in text


def test_interrupting_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(raising(KeyboardInterrupt()), capsys, "work") == (130, "interrupted\n")
    loading = ImportError("initialization failed")
    loading.__cause__ = KeyboardInterrupt()
    assert outcome(raising(loading), capsys, "work") == (130, "interrupted\n"), (
        "ONNX Runtime's way to pass it on"
    )


@pytest.mark.parametrize("bug", [ZeroDivisionError(), ImportError("No module named 'x'")])
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    app = typer.Typer()
    app.command()(raising(bug))
    with pytest.raises(type(bug)):
        run(app, [], program="program")


def test_the_closest_name_is_suggested() -> None:
    assert did_you_mean("divprun", ["divprune", "random"]) == " (did you mean 'divprune'?)"
    assert did_you_mean("x", ["divprune"]) == ""
