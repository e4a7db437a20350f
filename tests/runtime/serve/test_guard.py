"""Bodies are counted as they come, each and all together."""

from __future__ import annotations

import asyncio
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from divprune_edge.errors import DivpruneError
from divprune_edge.runtime.serve.app import make_app
from divprune_edge.runtime.serve.guard import Access, Guard
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.metrics import Metrics
from divprune_edge.runtime.serve.scheduler import internal, too_late

openai = pytest.importorskip("openai")
HTTPX: Any = import_module(openai.DefaultAsyncHttpxClient.__base__.__module__.partition(".")[0])
"""By which the client speaks: httpx, or httpx2 in newer ones."""


async def status(guard: Guard, *parts: int) -> int:
    """Send a body in parts of so many bytes, and return what is answered."""
    sent: list[Any] = []
    left = list(parts)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b" " * left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    await guard({"type": "http", "path": "/v1/models", "headers": []}, receive, send)
    return int(sent[0]["status"])


async def read(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request once its body is there."""
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200})


def test_a_body_that_never_fits_is_not_told_to_come_again() -> None:
    """Whether or not there is room for it at the moment."""
    guard = Guard(read, Access(), ServerLimits(body_bytes=10, all_bodies_bytes=12))
    assert asyncio.run(status(guard, 8, 8)) == 413
    guard.hold(9)
    assert asyncio.run(status(guard, 20)) == 413
    assert asyncio.run(status(guard, 4)) == 429
    guard.let_go(9)
    assert asyncio.run(status(guard, 5, 5)) == 200


def test_what_is_answered_or_refused_is_not_held() -> None:
    guard = Guard(read, Access(), ServerLimits(body_bytes=10, all_bodies_bytes=10))
    for parts, answer in (((6, 6), 413), ((10,), 200), ((6, 4), 200)):
        assert asyncio.run(status(guard, *parts)) == answer


@pytest.mark.parametrize(("error", "times"), [(too_late(), 1), (internal(), 3)])
def test_what_took_too_long_is_not_asked_again(error: DivpruneError, times: int) -> None:
    """By OpenAI's client, which asks again after errors of the server otherwise."""
    asked = []

    def refuse(client: str) -> None:
        asked.append(client)
        raise error

    engine: Any = SimpleNamespace(refuse=refuse, limits=ServerLimits(), retry_after=1, metrics=Metrics())
    app: Any = make_app(engine, SimpleNamespace(), bytes, Access())  # type: ignore[arg-type]

    async def ask() -> None:
        async with openai.DefaultAsyncHttpxClient(transport=HTTPX.ASGITransport(app=app)) as http:
            client = openai.AsyncOpenAI(base_url="http://a/v1", api_key="b", http_client=http, max_retries=2)
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="demo", messages=[])

    asyncio.run(ask())
    assert len(asked) == times
