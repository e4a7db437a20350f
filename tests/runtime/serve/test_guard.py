"""Bodies are counted as they come, each and all together."""

from __future__ import annotations

import asyncio
from typing import Any

from divprune_edge.runtime.serve.guard import Access, Guard
from divprune_edge.runtime.serve.limits import Limits


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
    guard = Guard(read, Access(), Limits(body_bytes=10, all_bodies_bytes=12))
    assert asyncio.run(status(guard, 8, 8)) == 413
    guard.hold(9)
    assert asyncio.run(status(guard, 20)) == 413
    assert asyncio.run(status(guard, 4)) == 429
    guard.let_go(9)
    assert asyncio.run(status(guard, 5, 5)) == 200


def test_what_is_answered_or_refused_is_not_held() -> None:
    guard = Guard(read, Access(), Limits(body_bytes=10, all_bodies_bytes=10))
    for parts, answer in (((6, 6), 413), ((10,), 200), ((6, 4), 200)):
        assert asyncio.run(status(guard, *parts)) == answer
