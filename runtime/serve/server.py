"""uvicorn, set up: one process, one port, no more than is needed."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from divprune_edge.console import INTERRUPTED
from divprune_edge.errors import UserError
from divprune_edge.runtime.pipeline import Pipeline
from divprune_edge.runtime.serve.app import make_app
from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.engine import Engine
from divprune_edge.runtime.serve.guard import Access
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.protocol import bounded_protocol
from divprune_edge.runtime.serve.remote import Fetcher
from divprune_edge.runtime.serve.scheduler import internal
from divprune_edge.runtime.serve.settings import Settings

_GRACE = 5
"""Seconds for clients to take what they are told when the server ends."""


class _Server(uvicorn.Server):
    """One that has questions answered, or told that they are not, before it cuts connections."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and end those that there are."""
        threading.Thread(target=self._drain, daemon=True).start()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Hear a signal; a second Ctrl-C ends at once."""
        if self.should_exit and sig == signal.SIGINT:
            os.write(2, b"interrupted\n")
            os._exit(INTERRUPTED)  # else Python would end under threads that are in the midst of a graph
        super().handle_exit(sig, frame)


def serve(pipeline: Pipeline, limits: ServerLimits, settings: Settings, engine: Engine) -> None:
    """Answer until told to stop (SIGTERM, Ctrl-C), and what was asked before that.

    Raises:
        UserError: the port is taken.
        DivpruneError: the engine has failed for good; who started the server may start it again.
    """
    bundle = pipeline.bundle
    catalog = Catalog(
        bundle,
        settings.name or bundle.path.name,
        int((bundle.path / "manifest.json").stat().st_mtime),
        pipeline.selector,
        engine.joins_between_steps,
    )
    app = make_app(engine, catalog, Fetcher(settings.url_hosts, limits), Access(settings.key, settings.hosts))
    listening = _listen(settings)

    async def look() -> None:
        server.should_exit = server.should_exit or engine.lost

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
        timeout_graceful_shutdown=limits.drain_seconds + _GRACE,
        h11_max_incomplete_event_size=limits.header_bytes,
        callback_notify=look,
        timeout_notify=1,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = _Server(config, lambda: engine.drain(limits.drain_seconds))

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    # Until uvicorn listens to signals itself, and once more when all is answered: it raises then what stopped it.
    signal.signal(signal.SIGTERM, end)
    _say(catalog, settings, listening, pipeline.backend.name)
    server.run(sockets=[listening])
    if engine.lost:
        raise internal()


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
