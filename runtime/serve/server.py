"""uvicorn, set up: one process, one port, no more than is needed."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from divprune_edge.errors import UserError
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.serve.app import make_app
from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.engine import Engine
from divprune_edge.runtime.serve.guard import Access
from divprune_edge.runtime.serve.limits import Limits
from divprune_edge.runtime.serve.protocol import bounded_protocol
from divprune_edge.runtime.serve.remote import Fetcher

_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """How a server is reached.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        key: what clients have to know; None: nothing.
        open_to_all: listen on other addresses than loopback without a key.
        url_hosts: hosts that images may be fetched from.
        name: of the model; None: the bundle's folder.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    open_to_all: bool = False
    url_hosts: tuple[str, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}, expected 0 to 65535.", code="port-out-of-range")
        if not self.is_local and self.key is None and not self.open_to_all:
            raise UserError(
                f"--host is '{self.host}', where others can reach the server, but there is no API key: set "
                "DIVPRUNE_API_KEY or --api-key-file, or say --open-to-all.",
                code="serve-without-key",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def access(self) -> Access:
        """Who may ask: who knows the key; without one, who calls this machine by a name of its own."""
        hosts = frozenset((*_LOCAL, self.host.lower())) if self.key is None and self.is_local else None
        return Access(self.key, hosts)


def serve(pipeline: Pipeline, limits: Limits, settings: Settings, engine: Engine) -> None:
    """Answer until told to stop (SIGTERM, Ctrl-C), and what was asked before that.

    Raises:
        UserError: the port is taken.
    """
    bundle = pipeline.bundle
    catalog = Catalog(
        bundle,
        settings.name or bundle.path.name,
        int((bundle.path / "manifest.json").stat().st_mtime),
        pipeline.selector,
        engine.joins_between_steps,
    )
    app = make_app(engine, catalog, Fetcher(settings.url_hosts, limits), settings.access)
    listening = _listen(settings)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    _say(catalog, settings, listening, pipeline._backend.name)
    # uvicorn raises what stopped it once more, when all is answered: that is no reason to fail.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    uvicorn.Server(config).run(sockets=[listening])


def read_key(file: Path | None, environment: str | None) -> str | None:
    """Return the API key: of a file, or of the environment.

    Raises:
        UserError: the file cannot be read, or holds no key.
    """
    if file is None:
        text = environment
        where = "DIVPRUNE_API_KEY"
    else:
        where = f"'{file}'"
        try:
            text = file.read_text(encoding="utf-8")[:4096]
        except (OSError, ValueError) as error:
            raise UserError(
                f"The API key cannot be read from {where} ({getattr(error, 'strerror', None) or error}).",
                code="api-key-file",
            ) from None
    if text is None:
        return None
    if len(text.strip()) < 8 or not text.strip().isascii() or not text.strip().isprintable():
        raise UserError(
            f"{where} holds no API key: expected 8 or more printable ASCII characters.", code="api-key-file"
        )
    return text.strip()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror or error}): choose another --port "
            "or --host.",
            code="port-taken",
        ) from None
    return listening


def _say(catalog: Catalog, settings: Settings, listening: socket.socket, backend: str) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    joins = "between steps" if catalog.joins_between_steps else "between batches only: its KV cache grows"
    print(
        f"{catalog.name} on {backend}, {len(catalog.models)} models; sequences join {joins}.\n"
        f"http://{host}:{listening.getsockname()[1]}/",
        file=sys.stderr,
        flush=True,
    )
