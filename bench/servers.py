"""Servers as processes of their own: ours, and llama.cpp's through llama-cpp-python."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def ours(bundle: Path, threads: int, slots: int) -> Iterator[str]:
    """Serve a bundle, and give the server's address."""
    options = ["--port", "0", "--threads", str(threads), "--slots", str(slots), "--warm-up"]
    said = re.compile(r"(http://[\d.:]+)/")
    with _process(["runtime", "serve", str(bundle), *options], said.match) as found:
        yield found


@contextmanager
def llama(file: Path, threads: int, context: int) -> Iterator[str]:
    """Serve a GGUF file, and give the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "model": file,
        "host": "127.0.0.1",
        "port": port,
        "n_ctx": context,
        "n_batch": 1024,
        "n_ubatch": 1024,
        "n_threads": threads,
        "n_threads_batch": threads,
        # Its defaults: logits of every token of a prompt, and an answer broken off once somebody else asks.
        "logits_all": False,
        "interrupt_requests": False,
        "verbose": False,
    }
    command = [
        "llama_cpp.server",
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    said = re.compile(r".*Uvicorn running on (http://[\d.:]+)")
    with _process(command, said.match) as found:
        yield found


@contextmanager
def _process(module: list[str], ready: Callable[[str], re.Match[str] | None]) -> Iterator[str]:
    """Run a server as a process, from when it says that it is ready."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            yield _said(process, log, ready)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _said(process: subprocess.Popen[bytes], log: Any, ready: Callable[[str], re.Match[str] | None]) -> str:
    ends = time.monotonic() + 180
    while time.monotonic() < ends and process.poll() is None:
        log.seek(0)
        if found := next(filter(None, map(ready, log)), None):
            return found[1]
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"{process.args} is not ready:\n{log.read()[-2000:]}")
