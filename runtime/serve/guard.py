"""What stands before the routes: who may ask, how much may be sent, and how long anybody may take.

It is pure ASGI, so that a request is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.runtime.serve.answers import advice, error_fields, status_of
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.scheduler import internal, stopping

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("divprune_edge")
_OPEN = ("/health", "/")
"""Paths that need no key, and what lies below ``/page/``: they tell nothing of bundle or requests."""
REQUEST_ID = b"x-request-id"
"""By which a client can say which of its requests it speaks of, and the log does."""
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        key: what a client has to know; None: nothing.
        hosts: names by which the server may be called; None: any. A page of somebody else's that makes a browser look
            up its own name here is told apart by them.
    """

    key: str | None = None
    hosts: frozenset[str] | None = None

    def refuse(self, scope: Scope) -> UserError | None:
        """Return why a request is not let in, if it is not."""
        headers = dict(scope["headers"])
        path = scope["path"]
        if self.hosts is not None and _name(headers.get(b"host", b"")) not in self.hosts:
            return UserError(
                "The Host header is not a name of this server: call it by the address that it listens on.",
                code="host-unknown",
            )
        if self.key is None or path in _OPEN or path.startswith("/page/"):
            return None
        given = headers.get(b"authorization", b"")
        # Of digests, so that neither the content nor the length of a guess shows in the time that it takes.
        expected, found = (hashlib.sha256(text).digest() for text in (b"Bearer " + self.key.encode(), given))
        if hmac.compare_digest(expected, found):
            return None
        return UserError(
            "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.", code="api-key-wrong"
        )


class Guard:
    """An ASGI application around another one; see the module's text.

    Args:
        app: the other one.
        access: who may ask.
        limits: how much, and for how long.
        count: is told the code of each request that is refused here.
    """

    def __init__(
        self, app: App, access: Access, limits: ServerLimits, count: Callable[[str], None] | None = None
    ) -> None:
        self._app, self._access, self._limits, self._count = app, access, limits, count
        self._held, self._counting = 0, threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with an error."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        begun, number = False, f"req_{secrets.token_hex(12)}"

        async def sending(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = [*message.get("headers", ()), *SECURITY_HEADERS]
                if REQUEST_ID not in dict(headers):  # or a replica has given one
                    headers.append((REQUEST_ID, number.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            if (refusal := self._access.refuse(scope)) is not None:
                raise refusal
            self._check_head(scope)
            taken = _Body(self, receive)
            scope.setdefault("state", {})["hold"] = taken.hold
            try:
                await self._app(scope, taken, sending)
            finally:
                taken.release()
        except DivpruneError as error:
            self._refused(error, scope)
            if not begun:
                await answer_error(error, sending)
        except asyncio.CancelledError:  # the server ends, and has waited for as long as it may
            self._refused(stopping(), scope)
            if not begun:
                await answer_error(stopping(), sending)
        except Exception:
            _log.exception("Request %s failed.", number)
            if not begun:
                await answer_error(internal(), sending)

    def _refused(self, error: DivpruneError, scope: Scope) -> None:
        if self._count is not None and not scope.get("state", {}).get("taken"):
            self._count(error.code)

    def _check_head(self, scope: Scope) -> None:
        """Refuse a head that is too large, and a body by what its head says of it, before any of it is read."""
        # The parser counts what it waits for: a head that comes at once has never been waited for.
        taken = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if (
            taken + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
            > self._limits.header_bytes
        ):
            raise UserError(
                f"The head has more than {self._limits.header_bytes} bytes: send fewer or shorter headers.",
                code="head-too-large",
            )
        headers = dict(scope["headers"])
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy may go by the other one, and take the rest of the body for a request of somebody else.
            raise UserError(
                "The head has both Content-Length and Transfer-Encoding: send one of the two.",
                code="request-invalid",
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._limits.body_bytes:
            raise self.too_large()

    def hold(self, count: int) -> None:
        """Count bytes of a request that are held, from any thread.

        Raises:
            UserError: all bodies together are too large.
        """
        with self._counting:
            if self._held + count > self._limits.all_bodies_bytes:
                raise UserError(
                    "The server holds as many bytes of requests as it may: ask again later.",
                    code="server-busy",
                )
            self._held += count

    def let_go(self, count: int) -> None:
        """Count bytes that are not held any more."""
        with self._counting:
            self._held -= count

    @property
    def limits(self) -> ServerLimits:
        """What is let through."""
        return self._limits

    def too_large(self) -> UserError:
        """Return what is said of a body that is."""
        return UserError(
            f"The body has more than {self._limits.body_bytes} bytes: send fewer or smaller images.",
            code="request-too-large",
        )


class _Body:
    """A request's ``receive``, which counts what comes and how long that takes."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._held, self._whole, self._over = 0, False, False
        self._counting = threading.Lock()
        self._ends = asyncio.get_running_loop().time() + guard.limits.body_seconds

    async def __call__(self) -> Message:
        """Return the next part.

        Raises:
            UserError: it is too much, or comes too late.
        """
        if self._whole:  # what comes now is that the client leaves
            return await self._receive()
        left = self._ends - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except asyncio.TimeoutError:
            raise UserError(
                f"The body did not come within {self._guard.limits.body_seconds} s.", code="body-timeout"
            ) from None
        count = len(message.get("body", b""))
        if self._held + count > self._guard.limits.body_bytes:  # first, for asking again later would not help
            raise self._guard.too_large()
        self.hold(count)
        self._whole = not message.get("more_body", False)
        return message

    def hold(self, count: int) -> None:
        """Count bytes that are held for the request, from any thread.

        Raises:
            UserError: all requests together hold too many, or this one is over.
        """
        with self._counting:
            if self._over:
                raise UserError("Nobody waits for the answer any more.", code="request-timeout")
            self._guard.hold(count)
            self._held += count

    def release(self) -> None:
        """The request is answered."""
        with self._counting:
            self._guard.let_go(self._held)
            self._held, self._over = 0, True


async def answer_error(error: DivpruneError, send: Send) -> None:
    """Send an error in OpenAI's format."""
    body = json.dumps(error_fields(error), ensure_ascii=False).encode("utf-8", "replace")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    status = status_of(error)[0]
    headers += [(name.encode(), value.encode()) for name, value in advice(error, 5).items()]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (400, 408, 413, 431):  # where the next request begins is not known
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _name(host: bytes) -> str:
    """Return a Host header without its port."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
