"""Images from addresses: of hosts that are named, at public addresses, and as they are."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from raising import refused

from divprune_edge.errors import UserError
from divprune_edge.runtime.serve import remote
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.remote import Errand, Fetcher

from .conftest import PATIENCE

pytest.importorskip("fastapi")
HOST = "images.example"


def uncounted(count: int) -> None:
    """Hold as many bytes as there are."""


def fetcher(*addresses: str) -> Errand:
    return Fetcher([HOST], ServerLimits(), lambda host: list(addresses)).errand(uncounted)


@pytest.mark.parametrize(
    "url",
    [
        f"https://{HOST}:8443/a.png",
        f"https://user@{HOST}/a.png",
        f"https://{HOST}\\@127.0.0.1/a.png",
        f"https://{HOST}#@127.0.0.1/",
        f"https://{HOST}?@127.0.0.1/",
        f"https://{HOST}/a b",
        f"https://{HOST}/a\r\nHost: x",
        f"https://{HOST}/ä",
        f"https://{HOST}/\x00",
        f"https://{HOST}/" + "a" * 3000,
        "https:///a.png",
        "https://[::1]/a.png",
        "https://0x7f000001/a.png#",
        f"https://{HOST}%2f@127.0.0.1/",
    ],
)
def test_addresses_are_of_one_form(url: str) -> None:
    with refused("image-url-unsupported"):
        fetcher("93.184.216.34")(url)


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"{HOST}.evil.example", f"x{HOST}", f"a.{HOST}", "127.0.0.1", "2130706433", "localhost"],
)
def test_hosts_are_named_one_by_one(host: str) -> None:
    with refused("image-host-refused"):
        fetcher("93.184.216.34")(f"https://{host}/a.png")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "2001:db8::1",
        "x",
    ],
)
def test_private_addresses_behind_a_name(address: str) -> None:
    for addresses in ([address], ["93.184.216.34", address], []):
        with refused("image-host-refused"):
            fetcher(*addresses)(f"https://{HOST}/a.png")


def test_no_host_is_allowed_unless_named() -> None:
    with refused("image-url-unsupported"):
        Fetcher([], ServerLimits()).errand(uncounted)(f"https://{HOST}/a.png")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("unproven: fetching images over TLS, without openssl")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        f"/CN={HOST}",
    ]
    command += ["-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


Listening = Callable[[Callable[[ssl.SSLSocket], None]], Errand]


@pytest.fixture
def listening(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    """Return what makes a server, and a fetcher that takes its address for a public one."""
    monkeypatch.setattr(remote, "_is_public", lambda address: True)
    servers: list[socket.socket] = []

    def start(answer: Callable[[ssl.SSLSocket], None]) -> Errand:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        monkeypatch.setattr(remote, "PORT", server.getsockname()[1])

        def accept() -> None:
            while server.fileno() >= 0:
                with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as one:
                    requests.append(one.recv(4096))
                    answer(one)

        threading.Thread(target=accept, daemon=True).start()
        trust = ssl.create_default_context(cafile=str(certificate))
        fetcher = Fetcher(
            [HOST],
            ServerLimits(image_bytes=1000),
            lambda host: [looked_up.append(host) or "127.0.0.1"],
            trust,
        )  # type: ignore[func-returns-value]
        return fetcher.errand(held.append)

    yield start
    for server in servers:
        server.close()
    requests.clear()
    looked_up.clear()
    held.clear()


requests: list[bytes] = []
looked_up: list[str] = []
held: list[int] = []


def head(status: str, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode()


def test_what_lies_there(listening: Listening) -> None:
    fetch = listening(lambda one: one.sendall(head("200 OK", Connection="close") + b"image"))
    assert fetch(f"HTTPS://{HOST.upper()}/a.png?b=c") == b"image"
    assert requests[0].startswith(b"GET /a.png?b=c HTTP/1.1\r\nHost: images.example")
    assert looked_up == [HOST]


def test_an_address_is_called_once_and_its_bytes_are_counted(listening: Listening) -> None:
    fetch = listening(lambda one: one.sendall(head("200 OK") + b"image"))
    images = [fetch(f"https://{HOST}/{name}") for name in ("a", "b", "a", "a")]
    assert images == [b"image"] * 4
    assert images[0] is images[2]  # and held once
    assert (len(requests), sum(held)) == (2, 10)


def test_what_is_too_much_for_all_together_is_not_read_on(listening: Listening) -> None:
    def full(count: int) -> None:
        raise UserError("The server is full.", code="server-busy")

    fetch = listening(lambda one: one.sendall(head("200 OK") + b"a" * 900))
    fetch._hold = full
    with refused("server-busy"):
        fetch(f"https://{HOST}/")


def test_a_redirect_is_not_followed(listening: Listening) -> None:
    fetch = listening(lambda one: one.sendall(head("302 Found", Location="https://169.254.169.254/")))
    with refused("image-fetch-failed", "302"):
        fetch(f"https://{HOST}/")
    assert len(requests) == 1


def test_one_that_is_too_large(listening: Listening) -> None:
    fetch = listening(lambda one: one.sendall(head("200 OK") + b"a" * 200_000))
    with refused("image-too-large"):
        fetch(f"https://{HOST}/")


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_one_that_does_not_come(listening: Listening, begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SECONDS", 1.5)
    whole = []

    def drip(one: ssl.SSLSocket) -> None:
        one.sendall(begun)
        for _ in range(600):
            one.sendall(b"a")
            time.sleep(0.1)
        whole.append(True)

    fetch = listening(drip)
    with refused("image-fetch-failed"):
        fetch(f"https://{HOST}/")
    assert not whole


def test_all_images_of_a_request_share_one_time(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = listening(lambda one: one.sendall(head("200 OK") + b"image"))
    assert fetch(f"https://{HOST}/a") == b"image"
    fetch._ends = time.monotonic()
    with refused("image-fetch-failed"):
        fetch(f"https://{HOST}/b")
    assert fetch(f"https://{HOST}/a") == b"image"


def test_a_cut_ends_it(listening: Listening) -> None:
    """While it waits for its host, and before the next one is called."""
    reached, over = threading.Event(), threading.Event()

    def wait(one: ssl.SSLSocket) -> None:
        reached.set()
        over.wait(PATIENCE)

    fetch = listening(wait)
    cutter = threading.Thread(target=lambda: (reached.wait(PATIENCE), fetch.cut()))
    cutter.start()
    with refused("image-fetch-failed"):
        fetch(f"https://{HOST}/a")
    with refused("image-fetch-failed"):
        fetch(f"https://{HOST}/b")
    over.set()
    cutter.join()
    assert len(requests) == 1


def test_a_host_that_cannot_prove_its_name(listening: Listening) -> None:
    fetch = listening(lambda one: one.sendall(head("200 OK") + b"image"))
    fetch._fetcher._trust = ssl.create_default_context()
    with refused("image-fetch-failed"):
        fetch(f"https://{HOST}/")
