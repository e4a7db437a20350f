"""The lines of a conversation on the command line: questions, and what is to be seen with the next one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from divprune_edge.console import tell
from divprune_edge.errors import UserError, did_you_mean
from divprune_edge.processing.sources import Video

COMMANDS = ("/image", "/video")
HELP = "Ask a question a line; '/image PATH' and '/video PATH' are for the next one, Ctrl-D ends."

Ask = Callable[[str, "list[Path | Video]"], None]


def is_typed() -> bool:
    """Whether somebody types the lines, who is told of a mistake and may go on."""
    return sys.stdin.isatty()


def typed_lines() -> Iterator[str]:
    """Yield the lines of standard input that say something, with a prompt where someone types them."""
    if is_typed():
        print(HELP, file=sys.stderr)
    while True:
        if is_typed():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            if is_typed():
                print(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()


def converse(
    lines: Iterable[str], ask: Ask, fps: float | None, frames: int | None, *, forgiving: bool
) -> None:
    """Ask the questions among the lines, each with what the lines before it add.

    Args:
        lines: the conversation's.
        ask: asks one.
        fps: of the clips.
        frames: of the clips.
        forgiving: tell a mistake and go on with the next line.

    Raises:
        UserError: a mistake, unless that is forgiven.
    """
    media: list[Path | Video] = []
    last = ""
    for line in lines:
        try:
            if (found := _medium(line, fps, frames)) is not None:
                media.append(found)
                last = line
                continue
            asked, media, last = media, [], ""
            ask(line, asked)
        except UserError as error:
            if not forgiving:
                raise
            tell(str(error), code=error.code)
    if last and not forgiving:
        raise UserError(f"No question follows '{last}': ask about it.", code="chat-image")


def _medium(line: str, fps: float | None, frames: int | None) -> Path | Video | None:
    """Return what a line adds to the next question; None where it is a question.

    Raises:
        UserError: nothing is there, or it is nearly a command.
    """
    command, _, name = line.partition(" ")
    if command not in COMMANDS:
        if command.startswith("/") and (near := did_you_mean(command, COMMANDS)):
            raise UserError(f"There is no command '{command}'{near}.", code="chat-image")
        return None
    if not name.strip():
        raise UserError(f"'{command}' names no file: write '{command} PATH'.", code="chat-image")
    path = Path(name.strip())
    if not path.exists():
        is_image = command == "/image"
        raise UserError(
            f"There is no {'image' if is_image else 'clip'} at '{path}': check the path.",
            code="image-missing" if is_image else "clip-missing",
        )
    return path if command == "/image" else Video(path, fps, frames)
