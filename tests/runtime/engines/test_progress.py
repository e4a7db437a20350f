"""What a build shows, and Ctrl-C inside TensorRT."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest
from rich.console import Console

from divprune_edge.runtime.engines.progress import ConsoleReport, Interrupt


def show(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with ConsoleReport(console) as report:
        report.begin("vision_encoder", 1, 3)
        report.phase("Building", None, 4)
        report.phase("Timing", "Building", 2)
        report.step("Timing", 1)
        report.finished("Timing")
        report.step("Building", 3)
        report.step("never begun", 0)
        report.finished("Building")
        report.finished("never begun")
        report.done("vision_encoder", 12.4, 3 << 20, reused=False)
        report.done("language_model", 12.4, 3 << 20, reused=True)
    return out.getvalue()


def test_in_a_log_a_line_per_engine() -> None:
    assert show(terminal=False).splitlines() == [
        "(1 of 3) vision_encoder ...",
        "         vision_encoder: 3.0 MiB, 12 s",
        "         language_model: 3.0 MiB, as before",
    ]


def test_on_a_terminal_bars() -> None:
    shown = show(terminal=True)
    assert "vision_encoder: 3.0 MiB, 12 s" in shown
    assert "Building" in shown


def test_phases_come_from_several_threads() -> None:
    with ConsoleReport(Console(file=io.StringIO(), force_terminal=True)) as report:

        def work(name: str) -> None:
            for _ in range(50):
                report.phase(name, None, 2)
                report.step(name, 1)
                report.finished(name)

        threads = [threading.Thread(target=work, args=(f"phase {i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.fixture
def _quiet_sigint() -> object:
    before = signal.signal(signal.SIGINT, lambda *_: None)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_quiet_sigint")
def test_another_thread_sees_ctrl_c() -> None:
    """While the main thread is inside TensorRT, its callbacks run in threads where no Python handler runs."""
    seen: list[bool] = []
    with Interrupt() as interrupt:
        assert not interrupt.seen
        os.kill(os.getpid(), signal.SIGINT)
        thread = threading.Thread(target=lambda: seen.append(interrupt.seen))
        thread.start()
        thread.join()
    assert seen == [True]
    assert interrupt.seen
    assert signal.set_wakeup_fd(-1) == -1, "the hook is gone"


@pytest.mark.usefixtures("_quiet_sigint")
def test_other_signals_are_not_ctrl_c() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not interrupt.seen
    signal.signal(signal.SIGUSR1, before)
    assert not interrupt.seen


def test_outside_the_main_thread_nothing_is_hooked() -> None:
    seen: list[bool] = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append(interrupt.seen)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
