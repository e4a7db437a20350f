"""The command: what it is given, who may ask, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, run_code, run_module
from raising import assert_told, refused

from divprune_edge import Pipeline
from divprune_edge.models.demo import IMAGE
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.settings import Settings, read_key

from .conftest import PATIENCE, QUESTION, Serve, Served, about, openai, soon

KEY = "correct horse battery"


@pytest.mark.parametrize(
    ("options", "code", "value"),
    [
        (["--host", "0.0.0.0"], "serve-without-key", "0.0.0.0"),
        (["--host", "192.0.2.1"], "serve-without-key", "192.0.2.1"),
        (["--port", "70000"], "port-out-of-range", "70000"),
        (["--host", "203.0.113.7", "--open-to-all", "--port", "0"], "port-taken", "203.0.113.7"),
        (["--slots", "0"], "limit-out-of-range", "slots"),
        (["--limit", "max_token=3"], "limit-unknown", "max_token"),
        (["--limit", "max_tokens=-3"], "limit-out-of-range", "max_tokens"),
        (["--limit", "max_tokens"], "limit-out-of-range", "max_tokens"),
        (["--limit", "image_pixels=99999999999"], "limit-out-of-range", "image_pixels"),
        (["--limit", "all_bodies_bytes=1000"], "limit-out-of-range", "body_bytes is 16777216"),
        (["--prefill-chunk", "0"], "count-out-of-range", "0"),
        (["--image-cache", "-1"], "count-out-of-range", "-1"),
        (["--api-key-file", "/nowhere/key"], "api-key-file", "/nowhere/key"),
        (["--url-host", "https://example.org/"], "url-host-invalid", "https://example.org/"),
        (["--name", ""], "name-empty", "--name"),
        (["--name", " "], "name-empty", "--name"),
        (["--selector", "divprun"], "selector-not-in-bundle", "divprun"),
        (["--backend", "gpu"], "backend-unknown", "gpu"),
    ],
)
def test_options_that_cannot_be_meant(bundle: Path, options: list[str], code: str, value: str) -> None:
    result = run_module("runtime", "serve", str(bundle), *options)
    assert_told(result.returncode, result.stderr, code, value)


def test_a_port_that_is_taken(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = run_module("runtime", "serve", str(bundle), "--port", port)
    assert_told(result.returncode, result.stderr, "port-taken", f"127.0.0.1:{port}")


def test_without_what_it_needs(bundle: Path) -> None:
    code = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'uvicorn' else real(name, *rest)\n"
        f"sys.argv = ['runtime', 'serve', {str(bundle)!r}]\n"
        "from divprune_edge.runtime.cli import main\nmain()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert_told(result.returncode, result.stderr, "serve-not-installed", "uvicorn")


def test_nothing_of_the_server_is_loaded_for_a_question() -> None:
    code = (
        "import sys, divprune_edge.runtime.pipeline, divprune_edge.runtime.cli\n"
        "sys.exit(', '.join({'fastapi', 'uvicorn', 'prometheus_client', 'starlette'} & set(sys.modules)) or 0)"
    )
    run_code(code)


def test_it_listens_on_loopback_alone(server: Served) -> None:
    process = psutil.Process(server.process.pid)
    listening = [one.laddr.ip for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


@pytest.fixture(scope="module")
def locked(bundle: Path, serving: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(stat.S_IRUSR)
    return serving(bundle, "--api-key-file", str(file))


@pytest.mark.parametrize(
    "key", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer ä"]
)
def test_a_wrong_key(locked: Served, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": key.encode("utf-8").decode("latin-1")}
    for path in ("/v1/models", "/metrics", "/v1/models/demo", "/nothing"):
        status, data, answer = locked.get(path, **headers)
        assert (status, json.loads(data)["error"]["code"]) == (401, "api-key-wrong")
        assert answer["www-authenticate"] == "Bearer"
    assert locked.ask({"messages": about()}, **headers)[0] == 401
    assert locked.get("/health")[0] == locked.get("/")[0] == 200


def test_the_right_key(locked: Served, picture: str) -> None:
    answer = locked.client(KEY).chat.completions.create(model="demo", messages=about(picture))
    assert answer.choices[0].message.content == "purple"
    with pytest.raises(openai.AuthenticationError):
        locked.client("other").models.list()
    assert locked.get("/v1/models", Authorization=f"Bearer {KEY}", Host="any.example")[0] == 200


def test_a_refused_key_reads_no_body(locked: Served) -> None:
    with locked.raw() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10000000\r\n\r\n"
        )
        assert b"401" in connection.recv(4096)


def test_keys(tmp_path: Path) -> None:
    assert read_key(None, None) is None
    assert read_key(None, " secret-key \n") == "secret-key"
    for text in ("short", "", "ünïcödé-key", "with\x1bescape-long"):
        with refused("api-key-file"):
            read_key(None, text)
    (file := tmp_path / "key").write_bytes(b"\xff\xfe binary")
    with refused("api-key-file", str(file)):
        read_key(file, None)


@pytest.mark.parametrize(
    ("host", "names"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.0.0.9", True), ("0.0.0.0", False)],
)
def test_without_a_key_a_local_server_is_called_by_its_own_names(host: str, names: bool) -> None:
    settings = Settings(host, open_to_all=True)
    assert (settings.hosts is not None) == names
    assert Settings(host, key="long enough").hosts is None


def test_limits_are_numbers_of_their_range() -> None:
    assert ServerLimits().changed(["max_tokens=7", "queue=0"]) == ServerLimits(max_tokens=7, queue=0)
    for text in ("queue=1e3", "queue=²", "queue=", "queue=99999999999999999999"):
        with refused("limit-out-of-range"):
            ServerLimits().changed([text])


class Answering(threading.Thread):
    """A stream that is being read."""

    def __init__(self, server: Served, picture: str, **options: Any) -> None:
        super().__init__()
        self._create, self.text, self.error = server.client().chat.completions.create, "", None
        self._options = {"model": "demo", "messages": about(picture), "stream": True, **options}
        self.begun = threading.Event()
        self.reason: str | None = None
        self.start()

    def run(self) -> None:
        try:
            for chunk in self._create(**self._options):
                self.text += chunk.choices[0].delta.content or ""
                self.reason = chunk.choices[0].finish_reason
                if self.text:
                    self.begun.set()
        except Exception as error:
            self.error = error


def takes_more(server: Served) -> bool:
    try:
        server.raw().close()
    except OSError:
        return False
    return True


def test_sigterm_answers_what_was_asked(bundle: Path, serving: Serve, asked: Pipeline, picture: str) -> None:
    server = serving(bundle, "--slots", "1")
    options: dict[str, Any] = {"max_tokens": 300}
    answers = [Answering(server, picture, extra_body={"ignore_eos": True}, **options) for _ in range(2)]
    while not any(answer.begun.is_set() for answer in answers):
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    assert soon(lambda: not takes_more(server))
    for answer in answers:
        answer.join(PATIENCE)
    expected = asked.ask(IMAGE, QUESTION, ignore_eos=True, **options).answer
    assert [(answer.text, answer.reason) for answer in answers] == [(expected, "length")] * 2
    assert server.process.wait(PATIENCE) == 0
    assert not any("Traceback" in line for line in server.said)


@pytest.mark.parametrize("moment", ["Server.run", "Server.startup", "Server.main_loop", "Config.load"])
def test_sigterm_is_heard_from_the_moment_that_the_address_is_said(
    bundle: Path, serving: Serve, moment: str
) -> None:
    """Before uvicorn listens to signals, and while it starts."""
    told = (
        "import os, signal, uvicorn\n"
        f"real = uvicorn.{moment}\n"
        "def told(*given, **options):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(*given, **options)\n"
        f"uvicorn.{moment} = told\n"
    )
    server = serving(bundle, before=told)
    assert server.process.wait(PATIENCE) == 0
    assert not any("Traceback" in line for line in server.said)


def test_sigterm_waits_no_longer_than_it_may(bundle: Path, serving: Serve, picture: str) -> None:
    """Whoever is not answered by then is told so: in a stream, before it, and before the body is there."""
    server = serving(bundle, "--slots", "1", "--limit", "drain_seconds=0", "--limit", "max_tokens=1900")
    options = {"max_tokens": 1800, "extra_body": {"ignore_eos": True}}
    answers = [Answering(server, picture, **options)]
    answers[0].begun.wait(PATIENCE)
    answers.append(Answering(server, picture, **options, stream=False))
    assert soon(lambda: server.metrics()["divprune_requests_in_flight"] == 2)
    with server.raw() as half:
        half.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"100 Continue" in half.recv(4096)  # so that its body is being waited for
        server.process.send_signal(signal.SIGTERM)
        assert b"503 Service Unavailable" in half.recv(4096)
    assert server.process.wait(PATIENCE) == 0
    for answer in answers:
        answer.join(PATIENCE)
        assert isinstance(answer.error, openai.APIError)
        assert (answer.reason, answer.error.code) == (None, "server-stopping")
    assert not any("Traceback" in line for line in server.said)


STUCK = """
import sys, threading
import divprune_edge.runtime.serve.remote as remote
def look_up(host):
    print("looking up", file=sys.stderr, flush=True)
    threading.Event().wait()
remote._look_up = look_up
"""
"""A name server that never answers."""


def test_a_look_up_that_does_not_end_ends_with_the_time_of_its_request(bundle: Path, serving: Serve) -> None:
    server = serving(bundle, "--url-host", "images.example", before=f"{STUCK}\nremote.SECONDS = 1.0")
    for _ in range(10):  # more than there are threads at a time
        status, answer, _ = server.ask({"messages": about("https://images.example/a.png")})
        assert (status, answer["error"]["code"]) == (400, "image-fetch-failed")
    assert server.stop() == 0


def test_a_look_up_that_does_not_end_keeps_no_server_alive(bundle: Path, serving: Serve) -> None:
    before = f"{STUCK}\nremote.SECONDS = {PATIENCE}"
    server = serving(bundle, "--url-host", "images.example", "--limit", "drain_seconds=0", before=before)
    asking = threading.Thread(
        target=lambda: answers.append(server.ask({"messages": about("https://images.example/a.png")}))
    )
    answers: list[Any] = []
    asking.start()
    assert soon(lambda: "looking up\n" in server.said)
    assert server.stop() == 0
    asking.join(PATIENCE)
    assert (answers[0][0], answers[0][1]["error"]["code"]) == (503, "server-stopping")


SLOW = """
import time
from divprune_edge.runtime.serve.scheduler import Scheduler
step = Scheduler._step
Scheduler._step = lambda self: (time.sleep(0.05), step(self))
"""


def ended(server: Served) -> dict[str, float]:
    """Return how many requests ended how, so far."""
    pattern = r'divprune_requests_total\{outcome="([\w-]+)"\}'
    return {found[1]: n for name, n in server.metrics().items() if (found := re.fullmatch(pattern, name))}


def test_requests_are_counted_by_how_they_ended(bundle: Path, serving: Serve) -> None:
    """Those that never come to the engine, too: at the door, in the reading, or in the line."""
    limits = ["--limit", "body_bytes=100000", "--limit", "queue=0", "--slots", "1"]
    server = serving(bundle, *limits, before=SLOW, DIVPRUNE_API_KEY=KEY)
    right = {"Authorization": f"Bearer {KEY}"}
    answering = {"messages": about(), "max_tokens": 2}
    for _ in range(2):
        assert server.ask(answering, Authorization="x")[0] == 401
        assert server.ask(answering, **right)[0] == 200
        assert server.ask("{", **right)[0] == 400
        assert server.ask({}, path="/v1/other", **right)[0] == 404
        assert server.ask({}, path="/v1/models", **right)[0] == 405
        assert server.ask({"messages": [], "user": "u" * 100_000}, **right)[0] == 413
        assert server.ask(answering, **right, Content_Type="text/plain")[0] == 415
    long = {**answering, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with server.raw() as asking:
        body = json.dumps(long).encode()
        asking.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert asking.recv(4096)
        assert server.ask(answering, **right)[0] == 429
    assert soon(lambda: b'_total{outcome="left"} 1.0' in server.get("/metrics", **right)[1])
    text = server.get("/metrics", **right)[1].decode()
    found = dict(re.findall(r'^divprune_requests_total\{outcome="([\w-]+)"\} (.*)$', text, re.M))
    once = {"server-busy": "1.0", "left": "1.0"}
    twice = ["answered", "api-key-wrong", "request-invalid", "path-unknown", "method-unknown"]
    assert found == once | dict.fromkeys([*twice, "request-too-large", "content-type"], "2.0")
    assert re.search(r"^divprune_requests_in_flight 0.0$", text, re.M)


def test_who_leaves_before_there_is_a_question_is_counted_as_well(bundle: Path, serving: Serve) -> None:
    before = f"{STUCK}\nremote.SECONDS = {PATIENCE}"
    server = serving(bundle, "--url-host", "images.example", before=before)
    body = json.dumps({"messages": about("https://images.example/a.png")}).encode()
    with server.raw() as leaving:
        leaving.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert soon(lambda: "looking up\n" in server.said)
    assert soon(lambda: ended(server) == {"left": 1.0})


def test_a_time_out_is_one_whoever_notices_first(bundle: Path, serving: Serve, picture: str) -> None:
    stuck = (
        "import threading\n"
        "from divprune_edge.runtime.serve.scheduler import Scheduler\n"
        "Scheduler._turn = lambda self: threading.Event().wait()\n"
    )
    server = serving(bundle, "--limit", "request_seconds=1", before=stuck)
    status, answer, _ = server.ask({"messages": about(picture)})
    assert (status, answer["error"]["code"]) == (504, "request-timeout")
    assert ended(server) == {"request-timeout": 1.0}


def test_ctrl_c(bundle: Path, serving: Serve) -> None:
    assert serving(bundle).stop(signal.SIGINT) == 130


def test_a_second_ctrl_c_ends_at_once(bundle: Path, serving: Serve, picture: str) -> None:
    server = serving(bundle, before=SLOW)
    answer = Answering(server, picture, max_tokens=900, extra_body={"ignore_eos": True})
    assert answer.begun.wait(PATIENCE)
    server.process.send_signal(signal.SIGINT)
    assert soon(lambda: not takes_more(server))
    assert server.stop(signal.SIGINT) == 130
    answer.join(PATIENCE)
    assert answer.reason is None
    assert server.said[-1] == "interrupted\n" and not any("Traceback" in line for line in server.said)


def test_a_server_that_can_answer_no_more_ends(bundle: Path, serving: Serve, picture: str) -> None:
    """With a code that has it started again."""
    broken = (
        "from divprune_edge.runtime.serve.scheduler import Scheduler\n"
        "def broken(*given): raise RuntimeError('secret')\n"
        "Scheduler._turn = Scheduler._collapse = broken\n"
    )
    server = serving(bundle, before=broken)
    status, answer, _ = server.ask({"messages": about(picture)})
    assert (status, answer["error"]["code"]) == (500, "server-failed")
    assert server.process.wait(PATIENCE) == 1
    assert soon(lambda: "server-failed" in server.said[-1])


def test_after_kill_9_it_starts_again(bundle: Path, serving: Serve, picture: str) -> None:
    server = serving(bundle)
    answer = Answering(server, picture, max_tokens=300, extra_body={"ignore_eos": True})
    answer.begun.wait(PATIENCE)
    server.process.kill()
    answer.join(PATIENCE)
    assert answer.error is not None
    again = serving(bundle)
    assert again.client().chat.completions.create(model="demo", messages=about(picture)).choices
    again.stop()
