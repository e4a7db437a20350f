"""Fixtures of the runtime's tests: a cache of their own, the demo's pipeline, the command line in process."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from divprune_edge.console import run
from divprune_edge.runtime.bundle import Bundle
from divprune_edge.runtime.cli import app
from divprune_edge.runtime.pipeline import Pipeline


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def pipeline(demo_bundle: Path) -> Pipeline:
    """The demo bundle, pruned to 58 tokens, opened once."""
    return Pipeline(Bundle.open(demo_bundle, "always"))


@pytest.fixture
def bundle_copy(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may damage."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "copy"))


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


RunCommand = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """``python -m runtime …`` without starting a process."""

    def call(*arguments: object, stdin: str = "") -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(app, [str(argument) for argument in arguments], program="python -m runtime")
        code = stopped.value.code
        captured = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else 1, captured.out, captured.err)

    return call
