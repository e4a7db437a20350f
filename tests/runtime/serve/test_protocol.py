"""What a client does not take is not kept for it for ever, however little it is."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from uvicorn import Config
from uvicorn.server import ServerState

from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.protocol import bounded_protocol

from .conftest import PATIENCE


@pytest.mark.parametrize("keeps", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_takes(keeps: bytes) -> None:
    """Less of it than asyncio calls much: the server is done with it, and keeps the connection, or closes it."""

    async def run() -> None:
        state, answered = ServerState(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = b"a" * 40_000
            head = [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            await send({"type": "http.response.body", "body": body})
            answered.set()

        limits = ServerLimits(send_seconds=1, idle_seconds=1)
        protocol = bounded_protocol(limits)
        config = Config(
            app, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=limits.idle_seconds
        )
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of those that it accepts
        server = await asyncio.get_running_loop().create_server(
            lambda: protocol(config=config, server_state=state, app_state={}), sock=listening
        )
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            taker.connect(listening.getsockname())
            taker.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + keeps + b"\r\n")
            await asyncio.wait_for(answered.wait(), PATIENCE)
            while state.connections:
                await asyncio.sleep(0.01)
        server.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
