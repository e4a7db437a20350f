"""Commands that are imported when they are asked for: each is where its group says, and no other is loaded for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from raising import assert_told

from divprune_edge import cli
from divprune_edge.commands import application
from divprune_edge.console import run


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every command under a group."""
    if not hasattr(command, "list_commands"):
        yield path
        return
    for name in command.list_commands(None):
        yield from leaves(command.get_command(None, name), (*path, name))


def test_every_command_is_where_its_group_says() -> None:
    found = set(leaves(typer.main.get_command(cli.app)))
    assert {("export", "llava"), ("plugins", "build"), ("runtime", "ask"), ("runtime", "sweep")} <= found
    assert len(found) >= 20


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """Two commands, each in a module of its own."""
    for name in ("first", "second"):
        body = f"def work(number: int = 0): print('{name}', number)\n"
        (tmp_path / f"{name}_command.py").write_text(body, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"{name}_command", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return application({name: f"{name}_command:work" for name in ("first", "second")}, help="Two of them.")


def outcome(app: typer.Typer, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        run(app, arguments, program="program")
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out + captured.err


def test_one_command_is_loaded_without_the_other(
    two: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(two, capsys, "second", "--number", "3") == (0, "second 3\n")
    assert ("first_command" in sys.modules, "second_command" in sys.modules) == (False, True)


def test_the_help_text_shows_both(two: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = outcome(two, capsys, "--help")
    assert code == 0
    assert all(word in text for word in ("Two of them.", "first", "second", "--help"))


def test_a_wrong_name_is_told_without_loading_any(
    two: typer.Typer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = outcome(two, capsys, "secund")
    assert (code, text.count("\n")) == (2, 1)
    assert "'secund'" in text
    assert not {"first_command", "second_command"} & set(sys.modules)


def test_a_process_ends_without_looking_through_what_it_loaded() -> None:
    code = (
        "import atexit, gc\natexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))\n"
        "from divprune_edge.cli import main\nimport sys\nsys.argv = ['divprune-edge', 'runtime', 'info', 'nowhere']\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert_told(result.returncode, result.stderr, "bundle-missing", "nowhere")
    assert result.stdout == "True True\n"
