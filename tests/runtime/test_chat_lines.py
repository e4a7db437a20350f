"""A conversation that is typed: a mistake is told, and the conversation goes on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from raising import refused

from divprune_edge.models.demo import IMAGE
from divprune_edge.processing.sources import Video
from divprune_edge.runtime.chat_lines import HELP, converse

Asked = list[tuple[str, list["Path | Video"]]]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    yield ends
    for end in ends:
        os.close(end)


def test_at_a_terminal(demo_bundle: Path, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    lines = [
        "/image nowhere.png",
        f"/imge {IMAGE}",
        "/image",
        f"/image {IMAGE}",
        "What does the sign say?",
    ]
    os.write(ours, "".join(f"{line}\n" for line in [*lines, "word " * 700, "Is it red?"]).encode() + b"\x04")
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "ask", str(demo_bundle), "--chat", "--max-tokens", "4"],
        cwd=ROOT,
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert (first, second in ("yes", "no")) == ("48", True)
    assert done.stderr.startswith(f"{HELP}\n> ")
    told = [
        line.removeprefix("> ").partition(":")[0] for line in done.stderr.splitlines() if "error[" in line
    ]
    assert told == [
        "error[image-missing]",
        "error[chat-image]",
        "error[chat-image]",
        "error[prompt-too-long]",
    ]
    assert "did you mean '/image'" in done.stderr
    assert done.stderr.endswith("> \n")


@pytest.mark.parametrize(
    ("lines", "code", "value"),
    [
        (["/image nowhere.png", "What?"], "image-missing", "nowhere.png"),
        (["/video nowhere.mp4", "What?"], "clip-missing", "nowhere.mp4"),
        (["/vidoe a.mp4", "What?"], "chat-image", "'/video'"),
        (["What?", f"/image {IMAGE}"], "chat-image", IMAGE),
    ],
)
def test_elsewhere_the_first_mistake_ends_it(lines: list[str], code: str, value: object) -> None:
    with refused(code, value):
        converse(lines, lambda question, media: None, None, None, forgiving=False)


def test_what_begins_with_a_slash_may_be_a_question() -> None:
    asked: Asked = []
    lines = ["/etc, what is it?", f"/image {IMAGE}", f"/video {IMAGE.parent}", "And these?", "Why?"]
    converse(lines, lambda question, media: asked.append((question, media)), 2.0, None, forgiving=False)
    assert [(question, len(media)) for question, media in asked] == [
        ("/etc, what is it?", 0),
        ("And these?", 2),
        ("Why?", 0),
    ]
    picture, clip = asked[1][1]
    assert picture == IMAGE
    assert isinstance(clip, Video) and (clip.source, clip.fps) == (IMAGE.parent, 2.0)
