"""Every mistake has a code: kebab-case, written where the mistake is found, and held by a test."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.export.bundle import VerificationFailed

PACKAGE = ROOT / "divprune_edge"
FOLDERS = [PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_symlink())]
READERS = {"read_json"}
"""What takes the code of the mistake that a file may be."""
MISTAKES = READERS | {kind.__name__ for kind in (DivpruneError, UserError, VerificationFailed)}


def raised() -> Iterator[tuple[str, ast.expr | None]]:
    """Yield where a mistake is made, and its ``code=``."""
    for path in sorted({path for folder in FOLDERS for path in folder.rglob("*.py")}):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MISTAKES:
                given = {keyword.arg: keyword.value for keyword in node.keywords}
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", given.get("code")


def literals(code: ast.expr) -> list[str] | None:
    """Return the codes that an expression can be; none where it is passed on, None where it is anything else."""
    match code:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=ast.Constant(value=str(one)), orelse=ast.Constant(value=str(other))):
            return [one, other]
        case ast.BoolOp(values=[ast.Name(), ast.Name(id="code")]) | ast.Name(id="code"):
            return []  # passed on; whoever calls with ``code=`` writes it out
        case ast.Attribute(attr="code") | ast.Subscript(slice=ast.Constant(value="code")):
            return []
    return None


def known() -> set[str]:
    """Return all codes."""
    return {text for _, code in raised() if code is not None for text in literals(code) or []}


def test_every_code_is_written_out_in_kebab_case() -> None:
    sites = list(raised())
    assert len(sites) > 300
    for where, code in sites:
        assert code is not None, where
        texts = literals(code)
        assert texts is not None, f"{where}: {ast.unparse(code)}"
        for text in texts:
            assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+", text), f"{where}: {text}"


def test_every_code_is_in_some_test() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve()]
    named: set[str] = set()
    for path in tests:
        named.update(re.findall(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)+", path.read_text("utf-8")))
    assert known() - named == set()


@pytest.mark.parametrize("kind", [DivpruneError, UserError, VerificationFailed])
def test_a_mistake_keeps_its_code_between_processes(kind: type[DivpruneError]) -> None:
    for again in (
        pickle.loads(pickle.dumps(kind("No.", code="image-missing"))),
        copy.copy(kind("No.", code="a-b")),
    ):
        assert (type(again), str(again)) == (kind, "No.")
    assert again.code == "a-b"


@pytest.mark.parametrize("guide", ["docs/engines.md", "docs/jetson.md"])
def test_the_guides_name_codes_that_exist(guide: str) -> None:
    rows: list[str] = []
    for table in re.findall(r"^\| code \|.*\n((?:\|.*\n)+)", (ROOT / guide).read_text("utf-8"), re.MULTILINE):
        rows += re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {code for row in rows for code in re.findall(r"`([^`]+)`", row)}
    assert len(named) > 15
    assert named - known() == set()
