"""Every command line that a sentence, the README or a page holds is one that can be typed."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import ROOT, run_module

from divprune_edge.export.cli import app as export_app
from divprune_edge.hints import as_typed, install, interpreter
from divprune_edge.plugins.cli import app as plugins_app
from divprune_edge.runtime.cli import app as runtime_app

APPS = {"export": export_app, "plugins": plugins_app, "runtime": runtime_app}
PROGRAM = r"(?:[\w./-]*python3? -m|divprune-edge) (?:export|plugins|runtime)"
SOURCES = [
    path
    for folder in ("divprune_edge", "export", "models", "plugins", "runtime")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
PAGES = [
    ROOT / "README.md",
    ROOT / "export/package/files/README.txt",
    *sorted((ROOT / "docs").glob("*.md")),
]
# What a reader puts a number for.
NUMBERS = {"K": "58", "N": "4", "ROWS": "1024", "TOKENS": "64"}


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield every text of a module, but docstrings; what is filled in stands there as a number or a command."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in docs | inside:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(filled(part) for part in node.values)


def filled(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    code = ast.unparse(part)
    if "export_command" in code:
        return "python -m export llava"
    return "58" if not re.search(r"selector|name|target", code) else "divprune"


def hints() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for command in re.findall(rf"'({PROGRAM}\b[^'\n]*)'", text):
                yield path.relative_to(ROOT).as_posix(), command


def written() -> Iterator[tuple[str, str]]:
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = re.findall(rf"^(?:\$ |    )({PROGRAM}\b.*)$", text, re.MULTILINE)
        inline = re.findall(rf"`({PROGRAM}\b[^`]*)`", text)
        for command in [*lines, *inline]:
            yield path.relative_to(ROOT).as_posix(), " ".join(command.split())


def words(command: str) -> list[str]:
    """Return the arguments up to whatever a shell would take for itself."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[str] = []
    for word in lexer:
        if word[0] in "|&;<>":
            break
        bare = word.strip("[]")
        found.append(NUMBERS.get(bare, bare))
    return found[1:] if found[0] == "divprune-edge" else found[2:]


@cache
def group_of(program: str) -> Any:
    return typer.main.get_command(APPS[program])


def parse(arguments: list[str]) -> None:
    program, *rest = arguments
    group = group_of(program)
    if rest in ([], ["…"]):
        return
    try:
        name, command, given = group.resolve_command(group.context_class(group), rest)
    except typer.BadParameter.__mro__[2]:
        raise AssertionError(f"there is no '{program} {rest[0]}'") from None
    if given not in ([], ["--help"]):  # alone it is a command's name
        command.make_context(name, given)


@pytest.mark.parametrize(
    ("where", "command"), sorted({*hints(), *written()}), ids=lambda value: value.replace("/", ".")
)
def test_it_parses(where: str, command: str) -> None:
    given = words(command)
    # What is left out stands for a value, for what is required, or for more.
    readings = [[word for word in given if word != "…"], given] if "…" in given else [given]
    errors = [error for error in map(mistake, readings) if error is not None]
    missing = "…" in given and any(type(error).__name__ == "MissingParameter" for error in errors)
    assert missing or len(errors) < len(readings), (where, command, [e.format_message() for e in errors])


def mistake(arguments: list[str]) -> Any:
    try:
        parse(arguments)
    except typer.BadParameter.__mro__[2] as error:
        return error
    return None


def test_there_are_some() -> None:
    assert len(set(hints())) >= 20
    assert len(set(written())) > 60


def test_no_sentence_names_a_package_that_no_registry_has() -> None:
    for path in [*SOURCES, *PAGES]:
        assert "'divprune-edge[" not in path.read_text(encoding="utf-8"), path


def test_this_interpreter_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("other", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("python", "python3"):
            (tmp_path / folder / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert as_typed("run 'python -m runtime info x'") == "run '.venv/bin/python -m runtime info x'"
    assert as_typed("python -m venv, a-python -m export, python -m exporter") == (
        "python -m venv, a-python -m export, python -m exporter"
    )
    monkeypatch.chdir("/")
    assert interpreter() == str(tmp_path / ".venv/bin/python")
    monkeypatch.setenv("PATH", str(tmp_path / ".venv/bin"))
    assert interpreter() == "python"
    (tmp_path / ".venv/bin/python").unlink()
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python3"))
    assert interpreter() == "python3"


def test_a_mistake_and_an_export_name_this_interpreter(tmp_path: Path) -> None:
    """Where PATH has another Python, as with `make demo` in a new shell."""
    environment = {"PATH": "/usr/bin:/bin"}
    refused = run_module("runtime", "info", "nowhere", path=environment["PATH"])
    assert f"'{interpreter_of(environment)} -m export llava'" in refused.stderr
    done = run_module(
        "export", "llava", "--no-verify", "--output", str(tmp_path / "a b"), path="/usr/bin:/bin"
    )
    ask = f"Ask it: {interpreter_of(environment)} -m runtime ask '{tmp_path / 'a b'}' --image IMAGE"
    assert ask in done.stdout.replace("\n", "")


def interpreter_of(environment: dict[str, str]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", environment["PATH"])
        patch.chdir(ROOT)
        return interpreter()


def test_extras_from_the_clone_and_from_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install("cpu", "verify") == "python -m pip install -e '.[cpu,verify]' in the clone"
    monkeypatch.setattr("divprune_edge.hints.__file__", str(tmp_path / "divprune_edge/hints.py"))
    assert "'./divprune_edge-0.1.0-py3-none-any.whl[lmms]'" in install("lmms")
