"""The routes: chat completions, models, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.runtime.serve.answers import Writing, advice, error_fields, event_text, status_of
from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.engine import Engine
from divprune_edge.runtime.serve.guard import Access, App, Guard, Receive, Scope, Send
from divprune_edge.runtime.serve.job import Conversation, Ended, Event, Failed, Job
from divprune_edge.runtime.serve.reader import ClientGone, RequestReader
from divprune_edge.runtime.serve.remote import Fetcher
from divprune_edge.runtime.serve.scheduler import internal, too_late
from divprune_edge.runtime.serve.schema import ChatRequest

_COMPLETIONS = "/v1/chat/completions"
_GRACE = 1.0
"""Seconds that the engine has to say by itself that a question's time is over."""


def make_app(engine: Engine, catalog: Catalog, fetcher: Fetcher, access: Access) -> App:
    """Return the application; ``fetcher`` gets images from addresses."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    # What a question looks like is for its client to know, and would be written here as often as it is asked.
    logging.getLogger("divprune_edge.processing.prompt").setLevel(logging.ERROR)
    page = _page()
    read = RequestReader(catalog, engine.limits, fetcher)

    _answer_errors(app, engine)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if engine.alive else "stopping"}, 200 if engine.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": catalog.entries()})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return JSONResponse(catalog.entry(name))

    @app.post(_COMPLETIONS)
    async def complete(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise UserError(
                "The body is not declared as JSON: send the header 'Content-Type: application/json'.",
                code="content-type",
            )
        coding = request.headers.get("content-encoding", "identity").strip().lower()
        if coding != "identity":
            raise UserError(
                "The body is compressed, which this server does not read: send it as it is.",
                code="content-encoding",
            )
        client = request.client.host if request.client is not None else ""
        if (refusal := engine.refuse(client)) is not None:  # before the body is read
            raise refusal
        body, began = await request.body(), time.monotonic()
        gone = asyncio.ensure_future(_until_gone(request.receive))
        try:
            asked, question = await read(body, request.state.hold, gone)
            del body
            writing, stream = _writing(asked, question, catalog), asked.stream
            del asked
            answer = _Answer(engine, writing, question, client, began, gone)
            request.state.taken = True
            del question  # its images are the encoder's to let go of
        except BaseException:
            gone.cancel()
            raise
        return await (answer.streamed() if stream else answer.whole())

    @app.get("/")
    async def index() -> Response:
        return _file(page, "index.html")

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        return _file(page, name)

    for route in app.routes:
        if isinstance(route, Route) and route.methods is not None and "GET" in route.methods:
            route.methods.add("HEAD")  # as load balancers look whether somebody is there
    return Guard(app, access, engine.limits, engine.metrics.refused)


def _answer_errors(app: FastAPI, engine: Engine) -> None:
    """Answer what goes wrong in OpenAI's format, and count it where the engine does not."""

    def refused(request: Request, outcome: str) -> None:
        """Count a request that never was the engine's to count."""
        if not getattr(request.state, "taken", False):
            engine.metrics.refused(outcome)

    @app.exception_handler(DivpruneError)
    async def known(request: Request, error: DivpruneError) -> Response:
        refused(request, error.code)
        return JSONResponse(error_fields(error), status_of(error)[0], advice(error, engine.retry_after))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        said, headers = _no_path(), None
        if error.status_code == 405:
            taken = "POST" if request.url.path == _COMPLETIONS else "GET"
            said = UserError(f"This path takes {taken}, not {request.method}.", code="method-unknown")
            headers = {"allow": taken.replace("GET", "GET, HEAD")}
        refused(request, said.code)
        return JSONResponse(error_fields(said), error.status_code, headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        refused(request, internal().code)
        return JSONResponse(error_fields(internal()), 500)  # what it was, the guard's log says

    @app.exception_handler(ClientDisconnect)  # in the middle of its body
    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: Exception) -> Response:
        refused(request, "left")
        return Response(status_code=499)


def _writing(asked: ChatRequest, question: Conversation, catalog: Catalog) -> Writing:
    return Writing(
        f"chatcmpl-{secrets.token_hex(12)}",
        asked.model or catalog.name,
        question.selector,
        question.logprobs is not None,
        bool(asked.stream_options and asked.stream_options.include_usage),
    )


class _Answer:
    """One answer on its way from the engine's threads to a client, which may leave at any time."""

    def __init__(
        self,
        engine: Engine,
        writing: Writing,
        question: Conversation,
        client: str,
        began: float,
        gone: asyncio.Task[None],
    ) -> None:
        self._engine, self.writing = engine, writing
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # of a loop that is closed: nobody is there any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job: Job = engine.submit(question, client, tell, began)
        self._gone = gone

    async def next(self) -> Event:
        """Return the next event.

        Raises:
            DivpruneError: there is no more, as something is wrong.
            ClientGone: nobody waits for it.
        """
        if self._events.empty():
            event = asyncio.ensure_future(self._events.get())
            # Whatever the engine's threads do, nobody waits much longer than is allowed.
            left = max(self._job.deadline - time.monotonic(), 0) + _GRACE
            await asyncio.wait({event, self._gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                event.cancel()
                if self._gone.done():
                    raise ClientGone
                self.leave(too_late().code)
                raise too_late()
            found = event.result()
        else:
            found = self._events.get_nowait()
        if isinstance(found, Failed):
            raise found.error
        return found

    async def whole(self) -> Response:
        """Return the answer in one piece."""
        try:
            while True:
                event = await self.next()
                self.writing.take(event)
                if isinstance(event, Ended):
                    return JSONResponse(self.writing.whole())
        finally:
            self.leave()

    async def streamed(self) -> Response:
        """Return the answer as a stream, once it is known that there will be one."""
        try:
            return _Stream(self, await self.next())
        except BaseException:
            self.leave()
            raise

    def leave(self, outcome: str = "left") -> None:
        """Wait no more; to an answer that is whole nothing happens."""
        self._gone.cancel()
        self._engine.leave(self._job, outcome)


class _Stream(Response):
    """An answer as server-sent events."""

    def __init__(self, answer: _Answer, first: Event) -> None:
        super().__init__(media_type="text/event-stream")
        self._answer, self._first = answer, first
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send event after event, until the answer is whole or the client leaves."""

        async def write(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            event = self._first
            while True:
                await write(b"".join(map(event_text, self._answer.writing.take(event))))
                if isinstance(event, Ended):
                    break
                try:
                    event = await self._answer.next()
                except DivpruneError as error:
                    await write(event_text(error_fields(error)))
                    break
            await write(event_text("[DONE]"), more=False)
        except ClientGone:
            pass
        finally:
            self._answer.leave()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _page() -> dict[str, bytes]:
    """Return the page's files by name: those that there are now, so that no name is ever a path."""
    folder = files("divprune_edge.runtime.serve") / "page"
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.is_file()}


def _no_path() -> UserError:
    return UserError(
        f"There is nothing at this path: questions go to {_COMPLETIONS}, so that a client's base URL ends in /v1.",
        code="path-unknown",
    )


def _file(page: dict[str, bytes], name: str) -> Response:
    if name not in page:
        raise _no_path()
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(page[name], media_type=kind, headers={"cache-control": "no-cache"})
