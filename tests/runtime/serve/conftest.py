"""Servers as users start them, and what they serve."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_module
from images_made import noise_image
from PIL import Image

from divprune_edge import Pipeline
from divprune_edge.models.demo import IMAGE

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

QUESTION = "What colour is the circle?"
PATIENCE = 300
"""Seconds that a test waits for anything: a loaded machine is slow, and what never comes is noticed all the same."""


class Served:
    """A server process; ``port`` once it listens. ``before`` is run in it first."""

    def __init__(self, bundle: Path, *options: str, before: str = "", **environment: str) -> None:
        code = f"{before}\nfrom divprune_edge.runtime.cli import main\nmain()"
        entry = ["-c", code] if before else ["-m", "runtime"]
        command = [sys.executable, *entry, "serve", str(bundle), "--port", "0", *options]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.match(r"http://.*:(\d+)/$", line):
                self.port = int(found[1])
                break
        assert self.port, "".join(self.said)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, key: str = "none", **options: Any) -> Any:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=PATIENCE, **options)

    def ask(self, body: Any, *, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any, Any]:
        """POST and return status, JSON and headers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text else None, answer.headers

    def get(self, path: str, **headers: str) -> tuple[int, bytes, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path, headers={name.replace("_", "-"): v for name, v in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, answer.headers

    def metrics(self) -> dict[str, float]:
        """Return the samples by name and labels."""
        text = self.get("/metrics")[1].decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def stop(self, how: int = signal.SIGTERM, seconds: float = PATIENCE) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(seconds)
        self._reader.join(seconds)  # all that it said
        return code


def soon(holds: Callable[[], bool]) -> bool:
    """Return whether something comes to hold; a connection that is not taken yet says no."""
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        with suppress(OSError, HTTPException):
            if holds():
                return True
        time.sleep(0.005)
    return False


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, with its cache in place, pruned to 58, or to 144, or not."""
    folder = tmp_path_factory.mktemp("served") / "demo"
    for arguments in (
        ["llava", "--prune", "0.9", "--dialect", "onnxruntime", "--no-verify", "--output", str(folder)],
        ["selector", str(folder), "--keep", "144"],
    ):
        made = run_module("export", *arguments)
        assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="session")
def asked(bundle: Path) -> Pipeline:
    """What ``ask`` answers with."""
    return Pipeline(bundle, threads=1)


@pytest.fixture(scope="session")
def serving() -> Iterator[Serve]:
    """Start servers, which end with the tests."""
    started: list[Served] = []

    def start(bundle: Path, *options: str, before: str = "", **environment: str) -> Served:
        started.append(Served(bundle, "--threads", "1", *options, before=before, **environment))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.process.kill()
        served.process.wait()


@pytest.fixture(scope="session")
def server(bundle: Path, serving: Serve) -> Served:
    return serving(bundle, "--slots", "4")


@pytest.fixture
def client(server: Served) -> Any:
    return server.client()


def data_url(image: Path | bytes | Image.Image, kind: str = "png") -> str:
    if isinstance(image, Image.Image):
        image.save(held := io.BytesIO(), {"jpg": "JPEG"}.get(kind, kind.upper()))
        image = held.getvalue()
    data = image.read_bytes() if isinstance(image, Path) else image
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def noise(seed: int, height: int = 90, width: int = 140) -> Image.Image:
    return noise_image(height, width, seed)


def about(*images: str, question: str = QUESTION) -> list[dict[str, Any]]:
    """Return the messages of a question about images."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@pytest.fixture(scope="session")
def picture() -> str:
    return data_url(IMAGE)
