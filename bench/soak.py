"""A server under mixed load, for half an hour: no wrong answer, no stuck request, no memory that grows.

``python -m bench.soak BUNDLE --minutes 30 --json bench/results/soak.json``. Clients ask, also in conversations and
with a seed, some of them badly: they vanish, send what is no request, read slowly, send images that are too large,
never finish a head. Twice the server is killed (-9) and started again; at no other time may an answer break off. Every
answer is compared with the one of ``Pipeline``; memory is that of the last server's life, its first part left out. Exit
code 1 where something of this does not hold.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import psutil
from PIL import Image

from divprune_edge import Pipeline
from divprune_edge.files import write_whole
from divprune_edge.models.demo import IMAGE

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = (
    "What colour is the circle?",
    "What does the sign say?",
    "How many shapes are there?",
    "Is the green cross above the blue square?",
)
PATIENCE = 60.0
"""Seconds after which a request is stuck: the server's own limit is below it."""
FLAT = 0.05
KILLS = (0.1, 0.2)
WARM_UP = 0.2
"""Parts of the time: when the server is killed, and what of its last life is left out."""


@dataclass(frozen=True)
class Case:
    """A question, as a request's body, and the answer that ``ask`` gives."""

    body: dict[str, Any]
    answer: str


@dataclass
class Seen:
    """What happened."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """Count something that happened."""
        with self.lock:
            self.counts[what] += 1

    def answered(self, case: Case, text: str, seconds: float) -> None:
        """Compare an answer."""
        with self.lock:
            self.counts["answered"] += 1
            self.seconds.append(seconds)
            if text != case.answer:
                self.wrong.append(f"{text!r} instead of {case.answer!r}")


class Server:
    """The server, which can be started again."""

    def __init__(self, bundle: Path, options: list[str]) -> None:
        self._command = [sys.executable, "-m", "runtime", "serve", str(bundle), "--port", "0", *options]
        self.lives: list[list[tuple[float, int]]] = []
        self.tracebacks = 0
        self._killed, self._up = -float("inf"), 0.0
        self.start()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.match(r"http://.*:(\d+)/$", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError("".join(said))
        threading.Thread(target=self._listen, args=[self.process.stderr], daemon=True).start()
        self.lives.append([])
        self._up = time.monotonic()

    def _listen(self, said: Iterable[str]) -> None:
        self.tracebacks += sum("Traceback" in line for line in said)

    def was_down(self, since: float) -> bool:
        """Whether it was killed, or not there yet again, at any time from ``since`` on."""
        return self._killed > self._up or self._up > since

    def kill(self) -> None:
        """End it at once."""
        self._killed = time.monotonic()
        self.process.kill()
        self.process.wait()

    def sample(self, now: float) -> None:
        """Note how much memory it holds."""
        self.lives[-1].append((now, psutil.Process(self.process.pid).memory_info().rss))

    def metric(self, name: str) -> float:
        """Return one that it counts."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return float(re.findall(rf"^divprune_{name} (\S+)$", text, re.MULTILINE)[0])


def cases(bundle: Path, images: int, seed: int) -> list[Case]:
    """Return questions about so many images, with every selector, and what ``ask`` answers."""
    pipeline, pick = Pipeline(bundle, threads=1), random.Random(seed)
    with Image.open(IMAGE) as opened:
        picture = opened.convert("RGB")
    found = []
    selectors = [*(one.id for one in pipeline.bundle.manifest.selectors), "none"]
    for number in range(images):
        image = varied(picture, number)
        image.save(held := io.BytesIO(), "PNG")
        url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
        question, selector = pick.choice(QUESTIONS), pick.choice(selectors)
        options: dict[str, Any] = {"max_tokens": pick.choice((4, 16, 48)), "ignore_eos": pick.random() < 0.5}
        if pick.random() < 0.3:
            options |= {"temperature": 0.8, "top_p": 0.95, "seed": number}
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        model = pipeline.with_selector(selector)
        if pick.random() < 0.3:
            chat, again = model.chat(image), pick.choice(QUESTIONS)
            said = chat.ask(question).answer
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": again}]
            answer = chat.ask(again, **options).answer
        else:
            answer = model.ask(image, question, **options).answer
        found.append(Case({"messages": messages, "selector": selector, **options}, answer))
    text = pipeline.ask(None, "Who are you?", max_tokens=24, ignore_eos=True).answer
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 24, "ignore_eos": True}
    return [*found, Case(body, text)]


def varied(picture: Image.Image, number: int) -> Image.Image:
    """Return one of many images: the picture turned, cut and of other colours, so that no two are the same."""
    turned = picture.rotate(90 * (number % 4))
    turned = turned.crop((0, 0, turned.width - number % 7, turned.height - number % 5))
    return Image.fromarray(np.roll(np.asarray(turned), number, axis=2) ^ np.uint8(number // 4 % 8))


class Client(threading.Thread):
    """One who asks, well or badly, until the time is over."""

    def __init__(self, server: Server, known: list[Case], seen: Seen, ends: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._server, self._cases, self._seen, self._ends = server, known, seen, ends
        self._pick = random.Random(seed)
        self.doing = ""
        self.since = time.monotonic()

    def run(self) -> None:
        """Ask in one way after another."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._ask, 40),
            (self._stream, 30),
            (self._vanish, 12),
            (self._malformed, 6),
            (self._read_slowly, 4),
            (self._too_large, 4),
            (self._half_a_head, 4),
        ]
        while time.monotonic() < self._ends:
            (kind,) = self._pick.choices([kind for kind, _ in kinds], weights=[weight for _, weight in kinds])
            self.doing, self.since = kind.__name__.strip("_"), time.monotonic()
            try:
                kind()
            except (OSError, HTTPException, ValueError) as error:
                if isinstance(error, TimeoutError):
                    self._seen.stuck.append(f"{self.doing} after {time.monotonic() - self.since:.0f} s")
                self._broken_off(repr(error))
                time.sleep(0.2)
            self._seen.count(kind.__name__.strip("_"))
        self.doing = ""

    def _broken_off(self, how: str) -> None:
        """Count an answer that is not whole, which is a fault unless the server was killed meanwhile."""
        self._seen.count(f"broken off ({self.doing})")
        if not self._server.was_down(self.since):
            self._seen.wrong.append(f"{self.doing} was broken off: {how}")

    def _ask(self) -> None:
        case = self._pick.choice(self._cases)
        began = time.monotonic()
        connection, answer = self._send(case.body)
        data = json.loads(answer.read())
        connection.close()
        if answer.status == 200:
            self._seen.answered(case, data["choices"][0]["message"]["content"], time.monotonic() - began)
        else:
            self._refused(answer.status, data["error"]["code"], {"server-busy", "server-stopping"})

    def _stream(self, pause: float = 0.0) -> None:
        case = self._pick.choice(self._cases)
        began = time.monotonic()
        connection, answer = self._send({**case.body, "stream": True})
        if answer.status != 200:
            self._refused(answer.status, json.loads(answer.read())["error"]["code"], {"server-busy"})
            return
        text, whole = "", False
        for line in answer:
            time.sleep(pause)
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                text += chunk["choices"][0]["delta"].get("content") or ""
                whole = chunk["choices"][0]["finish_reason"] is not None
            elif line.startswith(b"data: [DONE]"):
                break
        else:
            whole = False
        connection.close()
        if whole:
            self._seen.answered(case, text, time.monotonic() - began)
        else:
            self._broken_off("its last event did not come")

    def _read_slowly(self) -> None:
        self._stream(0.05)

    def _vanish(self) -> None:
        case = self._pick.choice(self._cases)
        body = json.dumps({**case.body, "stream": self._pick.random() < 0.5}).encode()
        with self._raw() as connection:
            connection.sendall(_head(len(body)) + body[: self._pick.choice((0, len(body) // 2, len(body)))])
            time.sleep(self._pick.random() * 0.3)

    def _malformed(self) -> None:
        case = json.dumps(self._pick.choice(self._cases).body)
        body = self._pick.choice(
            (
                case[: self._pick.randrange(len(case))],
                "[" * 5000,
                '{"messages": []}',
                '{"messages": [{"role": "user", "content": "a"}], "n": 5}',
                '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}',
                case.replace("data:image/png;base64,", "http://localhost/"),
                case.replace("data:image/png;base64,i", "data:image/png;base64,A"),
            )
        )
        connection, answer = self._send(body)
        data = json.loads(answer.read())
        connection.close()
        if answer.status == 200 and "image" in body:
            self._seen.wrong.append(f"a malformed body was answered: {body[:80]}")
        elif answer.status >= 500:
            self._seen.wrong.append(f"a malformed body ended in {answer.status} {data}")

    def _too_large(self) -> None:
        side = self._pick.choice((6000, 17_000))
        Image.new("1", (side, side)).save(held := io.BytesIO(), "PNG")
        url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
        count = self._pick.choice((1, 17))
        parts = [{"type": "image_url", "image_url": {"url": url}}] * count
        connection, answer = self._send({"messages": [{"role": "user", "content": parts}]})
        code = json.loads(answer.read())["error"]["code"]
        connection.close()
        self._refused(
            answer.status, code, {"image-too-large", "too-many-images", "question-empty", "server-busy"}
        )

    def _half_a_head(self) -> None:
        with self._raw() as connection:
            connection.sendall(_head(10)[: self._pick.randrange(1, 60)])
            time.sleep(self._pick.random())

    def _refused(self, status: int, code: str, allowed: set[str]) -> None:
        self._seen.count(f"{status} {code}")
        if code not in allowed:
            self._seen.wrong.append(f"{self.doing} was refused by {status} {code}")
        time.sleep(0.1)

    def _send(self, body: Any) -> tuple[HTTPConnection, Any]:
        connection = HTTPConnection("127.0.0.1", self._server.port, timeout=PATIENCE)
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", "/v1/chat/completions", text, {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def _raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._server.port), timeout=PATIENCE)


def _head(length: int) -> bytes:
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def soak(bundle: Path, *, minutes: float, clients: int, images: int, seed: int) -> dict[str, Any]:
    """Return what happened."""
    known = cases(bundle, images, seed)
    # Caches that are full soon, or they would be what grows.
    options = (
        "--threads 1 --slots 4 --image-cache 8 --prefix-cache 8 --limit request_seconds=45 --limit queue=2"
    )
    server, seen = Server(bundle, options.split()), Seen()
    began = time.monotonic()
    ends = began + 60 * minutes
    asking = [Client(server, known, seen, ends, seed + number) for number in range(clients)]
    for client in asking:
        client.start()
    kills = [began + 60 * minutes * part for part in KILLS]
    while (now := time.monotonic()) < ends:
        if kills and now > kills[0]:
            kills.pop(0)
            server.kill()
            server.start()
        server.sample(now)
        time.sleep(min(1.0, 0.6 * minutes))
    for client in asking:
        client.join(PATIENCE + 10)
        if client.is_alive():
            seen.stuck.append(f"{client.doing} since {time.monotonic() - client.since:.0f} s")
    return {**report(server, seen), "minutes": minutes, "clients": clients, "images": images}


def report(server: Server, seen: Seen) -> dict[str, Any]:
    """Return the figures, once nobody asks any more; it ends the server."""
    ends = time.monotonic() + 10
    while server.metric("requests_in_flight") and time.monotonic() < ends:
        time.sleep(0.1)
    left = server.metric("requests_in_flight"), server.metric("sequences_running")
    server.process.send_signal(signal.SIGTERM)
    samples = [size for _, size in server.lives[-1]]
    samples = samples[int(len(samples) * WARM_UP) :]
    part = max(len(samples) // 4, 1)
    first, last = median(samples[:part]), median(samples[-part:])
    return {
        "counts": dict(sorted(seen.counts.items())),
        "wrong": seen.wrong[:20],
        "stuck": seen.stuck[:20],
        "left_in_flight": left[0],
        "left_in_slots": left[1],
        "exit_code": server.process.wait(60),
        "seconds": {
            "median": round(median(seen.seconds), 3),
            "p95": round(quantiles(seen.seconds, n=20)[-1], 3),
        },
        "memory_mb": {
            "first": round(first / 1e6, 1),
            "last": round(last / 1e6, 1),
            "growth": last / first - 1,
        },
        "servers": len(server.lives),
        "tracebacks": server.tracebacks,
    }


def faults(found: dict[str, Any]) -> list[str]:
    """Return what does not hold."""
    said = [f"wrong: {text}" for text in found["wrong"]] + [f"stuck: {text}" for text in found["stuck"]]
    if found["left_in_flight"] or found["left_in_slots"]:
        said.append(
            f"{found['left_in_flight']} requests and {found['left_in_slots']} slots are never let go of"
        )
    if found["tracebacks"]:
        said.append(f"the server wrote {found['tracebacks']} tracebacks")
    if found["exit_code"]:
        said.append(f"the server ended with {found['exit_code']}")
    if found["memory_mb"]["growth"] > FLAT:
        said.append(f"memory grew by {found['memory_mb']['growth']:.1%}")
    return said


def main() -> None:
    """Run it, print what happened, and write JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = soak(
        arguments.bundle.resolve(),
        minutes=arguments.minutes,
        clients=arguments.clients,
        images=arguments.images,
        seed=arguments.seed,
    )
    print(json.dumps(found, indent=2))
    if arguments.json:
        write_whole(arguments.json, json.dumps(found, indent=2) + "\n")
    for fault in (said := faults(found)):
        print(fault, file=sys.stderr)
    sys.exit(bool(said))


if __name__ == "__main__":
    main()
