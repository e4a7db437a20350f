"""How far long work has come: what a pipeline tells, and what a terminal shows."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips_made import noise, write_clip
from conftest import ROOT
from exporting import export, plan_of
from qwen_checkpoints import draft_qwen_checkpoint
from raising import refused

from divprune_edge import Pipeline, Video
from divprune_edge.runtime.progress import on_terminal


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that takes clips of eight frames, two of which are a grid."""
    checkpoint = draft_qwen_checkpoint(tmp_path_factory.mktemp("draft") / "tiny", "qwen3_vl")
    return export(plan_of(checkpoint, keep=4, frames=8), tmp_path_factory.mktemp("bundle") / "tiny").folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", noise(20))


def test_reading_and_encoding_are_told_of(bundle: Path, clip: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    pipeline = Pipeline(bundle, threads=1, on_progress=lambda *progress: told.append(progress))
    pipeline.ask(None, "a", video=clip, frames=8, max_tokens=1)
    reading = f"reading clip '{clip}'"
    assert told[0] == (reading, 0, None)
    assert [(done, total) for work, done, total in told[1:] if work == reading] == [(i, 8) for i in range(9)]
    assert [one for one in told if one[0] != reading] == [
        ("encoding tiles or frames", i, 4) for i in range(5)
    ]


def test_a_clip_tells_its_own_listener_and_the_pipelines(bundle: Path, clip: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    own: list[tuple[int, int]] = []
    pipeline = Pipeline(bundle, threads=1, on_progress=lambda *progress: told.append(progress))
    pipeline.ask(None, "a", video=Video(clip, frames=8, on_frame=lambda *of: own.append(of)), max_tokens=1)
    assert own == [(i, 8) for i in range(9)]
    assert [one[1:] for one in told if one[0].startswith("reading")] == [(0, None), *own]


def test_what_cannot_be_read_is_over(bundle: Path, tmp_path: Path) -> None:
    """A batch goes on with its next question."""
    told: list[tuple[str, int, int | None]] = []
    pipeline = Pipeline(bundle, threads=1, on_progress=lambda *progress: told.append(progress))
    (tmp_path / "no clip.mp4").write_bytes(b"none")
    with refused("clip-format-unknown", "no clip.mp4"):
        pipeline.ask(None, "a", video=tmp_path / "no clip.mp4")
    assert told[-1][1] == told[-1][2]


def test_two_questions_that_share_a_clip_read_it_once(bundle: Path, clip: Path) -> None:
    """Beside other images, too."""
    told: list[tuple[str, int, int | None]] = []
    pipeline = Pipeline(bundle, threads=1, on_progress=lambda *progress: told.append(progress))
    first, second = (np.full((40, 50, 3), value, np.uint8) for value in (0, 200))
    shared = Video(clip)
    pipeline.ask_batch([([first, shared], "a"), ([second, shared], "a")], max_tokens=1)
    assert [one[1:] for one in told if one[0].startswith("reading")].count((0, None)) == 1


def test_what_is_soon_done_is_not_told_of(bundle: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    pipeline = Pipeline(bundle, threads=1, on_progress=lambda *progress: told.append(progress))
    image = np.zeros((40, 50, 3), np.uint8)
    pipeline.ask(image, "a", max_tokens=1)
    assert not told
    pipeline.ask([image, image], "a", max_tokens=1)
    assert told == [("encoding images", i, 2) for i in range(3)]


def test_a_terminal_shows_it_and_a_file_does_not(bundle: Path, clip: Path) -> None:
    def ask(stderr: int) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "divprune_edge.runtime", "ask", bundle, "a", "--video", clip]
        options = ["--max-tokens", "1", "--threads", "1", "--frames", "8"]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"}
        return subprocess.run(
            [*command, *options], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, check=True
        )

    ours, theirs = pty.openpty()
    shown = ask(theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 1 << 16)
        except OSError:  # all is read
            break
    os.close(ours)
    plain = ask(subprocess.PIPE)
    assert b"reading clip" in seen
    assert b"reading clip" not in plain.stderr
    assert shown.stdout == plain.stdout
    assert plain.stderr.startswith(b"[4 visual of")


def test_nothing_is_left_behind_when_the_work_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(ValueError, match="broken"), on_terminal() as tell:
        tell("reading", 0, None)
        tell("reading", 1, 8)
        raise ValueError("broken")
    shown = capsys.readouterr().err
    assert "reading" in shown
    assert shown.endswith("\x1b[2K")  # the line of the bar is erased
