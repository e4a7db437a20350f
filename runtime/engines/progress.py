"""How far a build is, and how it is stopped: TensorRT reports from threads of its own."""

from __future__ import annotations

import signal
import socket
import threading
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class BuildProgress:
    """What a build tells while it runs, shown nowhere. Phases nest; their methods are called from any thread."""

    def begin(self, engine: str, at: int, of: int) -> None:
        """An engine's build begins, the ``at``-th of ``of``."""

    def done(self, engine: str, seconds: float, size: int, *, reused: bool) -> None:
        """An engine is there: it took ``seconds`` and has ``size`` bytes."""

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        """TensorRT begins a phase of so many steps."""

    def step(self, name: str, at: int) -> None:
        """Step ``at`` of a phase is done."""

    def finished(self, name: str) -> None:
        """A phase is done, also one that ended early."""


class ConsoleReport(BuildProgress):
    """A line per engine on standard error, and under it the phases as bars where someone looks on."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(markup=False, stderr=True)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ConsoleReport:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, engine: str, at: int, of: int) -> None:
        """See :class:`BuildProgress`, also for what follows."""
        self._console.print(f"({at} of {of}) {engine} ...", highlight=False)

    def done(self, engine: str, seconds: float, size: int, *, reused: bool) -> None:
        """Say how long it took."""
        how = "as before" if reused else f"{seconds:.0f} s"
        self._console.print(f"         {engine}: {size / 2**20:.1f} MiB, {how}", highlight=False)

    def phase(self, name: str, parent: str | None, steps: int) -> None:
        """Add a bar."""
        self._tasks[name] = self._bars.add_task(("  " if parent else "") + name, total=steps)

    def step(self, name: str, at: int) -> None:
        """Move the bar."""
        if name in self._tasks:
            self._bars.update(self._tasks[name], completed=at + 1)

    def finished(self, name: str) -> None:
        """Take the bar away."""
        with suppress(KeyError):
            self._bars.remove_task(self._tasks.pop(name))


class Interrupt:
    """Notices Ctrl-C while the main thread is inside TensorRT, where Python's own handler does not get to run.

    Within the context, :attr:`seen` tells any thread whether a signal has come.
    """

    def __init__(self) -> None:
        self._seen = False
        self._lock = threading.Lock()

    def __enter__(self) -> Interrupt:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        # The C part of Python's handler writes the signal's number here at once, whatever thread runs.
        self._hooked = threading.current_thread() is threading.main_thread()
        if self._hooked:
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hooked:
            signal.set_wakeup_fd(self._before)
        _ = self.seen
        self._reader.close()
        self._writer.close()

    @property
    def seen(self) -> bool:
        """Whether Ctrl-C was pressed."""
        with self._lock:
            with suppress(OSError):
                self._seen = self._seen or signal.SIGINT in self._reader.recv(64)
            return self._seen
