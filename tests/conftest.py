"""Fixtures that every part's tests may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from images_made import noise_image
from tokenizer_kinds import KINDS
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background lets them and all that they start ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_module(
    *arguments: str, cwd: Path = ROOT, path: str | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m …`` as a user would, with the clone importable; output is captured as text."""
    return _run_python("-m", *arguments, cwd=cwd, path=path, **options)


def run_code(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python -c …`` likewise; it has to end well."""
    done = _run_python("-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def _run_python(
    *arguments: str, cwd: Path, path: str | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint exported with 90 % pruning, float32, not verified."""
    bundle = tmp_path_factory.mktemp("bundles") / "demo"
    result = run_module("export", "llava", "--prune", "0.9", "--no-verify", "--output", str(bundle))
    assert result.returncode == 0, result.stderr
    return bundle


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noisy landscape image as PNG."""
    path = tmp_path_factory.mktemp("images") / "picture.png"
    noise_image(90, 140, 7).save(path)
    return path


@pytest.fixture(scope="session", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """One tokenizer of each kind."""
    return KINDS[request.param]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests only a GPU would have run, and what stays unproven for want of something else."""
    skipped = terminalreporter.stats.get("skipped", [])
    gpu = sum("tests/gpu/" in report.nodeid for report in skipped)
    if gpu:
        terminalreporter.write_line(f"{gpu} tests of tests/gpu were skipped: they need a CUDA GPU.")
    reasons = (report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in Counter(reasons).items():
        if reason.startswith("unproven:"):
            terminalreporter.write_line(f"{count} skipped, {reason}.")
