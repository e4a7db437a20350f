"""How far long work has come: told by the pipeline, shown on a terminal by the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

OnProgress = Callable[[str, int, int | None], None]
"""Gets what is done, how many of it are done, and of how many; None where that is not known yet."""


def in_silence(work: str, done: int, total: int | None) -> None:
    """Tell nobody."""


@contextmanager
def on_terminal() -> Iterator[OnProgress]:
    """Show a bar on standard error, if that is a terminal, until the work is done."""
    shown: list[Progress] = []

    def tell(work: str, done: int, total: int | None) -> None:
        if not shown:
            if done == total or not sys.stderr.isatty():
                return
            shown.append(_bar())
            shown[0].start()
        bar = shown[0]
        for task in bar.task_ids:
            bar.remove_task(task)
        bar.add_task(work, completed=done, total=total)
        if done == total:
            shown.pop().stop()

    try:
        yield tell
    finally:
        for bar in shown:
            bar.stop()


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
