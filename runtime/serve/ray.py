"""Past one machine: the server as two deployments of Ray Serve, which starts, watches and reaches the replicas.

``serve run divprune_edge.runtime.serve.ray:application bundle=BUNDLE replicas=2``. A front reads a request and names it
by its first image's hash; Ray's consistent-hash router brings it to the replica that has the image's visual tokens and
prompt already, or to another one where that is full. A replica is the whole server but its port: sequences join and
leave there as in :mod:`~divprune_edge.runtime.serve.engine`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from divprune_edge.errors import DivpruneError, UserError
from divprune_edge.runtime.serve.answers import error_fields, event_text
from divprune_edge.runtime.serve.app import make_app
from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.engine import CHUNK, Engine
from divprune_edge.runtime.serve.guard import Access, Guard, Message, Receive, Scope, Send
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.remote import Fetcher
from divprune_edge.runtime.serve.scheduler import internal
from divprune_edge.runtime.serve.schema import ChatRequest, read_request
from divprune_edge.runtime.serve.settings import Settings, read_key

REPLICA = b"x-replica"
"""Header of an answer: which replica it is from."""
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_CARRIED = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "headers",
    "client",
)
"""What of a request goes to a replica; the rest is Ray's, and stays."""


class Arguments(BaseModel):
    """What ``serve run`` is given, or a config file; as the options of ``python -m runtime serve``, but for:

    Attributes:
        limit: ``NAME=NUMBER``, several with commas between.
        replicas: how many there are.
        cpus: processors of a replica, as Ray counts them.
        gpus: GPUs of a replica.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    backend: str = "cpu"
    selector: str | None = None
    keep: int | None = None
    threads: int | None = None
    prefill_chunk: int = CHUNK
    image_cache: int = 256
    prefix_cache: int = 256
    limit: str = ""
    name: str | None = None
    replicas: int = 2
    cpus: float = 1
    gpus: float = 0

    @property
    def limits(self) -> ServerLimits:
        """The limits of a replica."""
        return ServerLimits().changed([text for text in self.limit.split(",") if text])


class Replica:
    """The server, less its port and its key."""

    def __init__(self, arguments: Arguments) -> None:
        from divprune_edge.runtime.pipeline import Pipeline

        limits = arguments.limits
        pipeline = Pipeline(
            arguments.bundle,
            arguments.selector,
            arguments.keep,
            arguments.backend,
            arguments.threads,
            warm_up=True,
        )
        self._engine = Engine(
            pipeline,
            limits,
            chunk=arguments.prefill_chunk,
            image_cache=arguments.image_cache << 20,
            prefix_cache=arguments.prefix_cache << 20,
        )
        path = pipeline.bundle.path
        created = int((path / "manifest.json").stat().st_mtime)
        catalog = Catalog(
            pipeline.bundle,
            arguments.name or path.name,
            created,
            pipeline.selector,
            self._engine.joins_between_steps,
        )
        self._app = make_app(self._engine, catalog, Fetcher((), limits), Access())
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._engine.start()

    def check_health(self) -> None:
        """Ray asks now and then, and starts another replica where this raises."""
        if not self._engine.alive:
            raise RuntimeError("the engine's threads have ended")

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """Yield the ASGI messages of an answer; who stops taking them has left."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone, asked = asyncio.Event(), False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            messages.put_nowait(message)

        answering = asyncio.ensure_future(self._app(scope, receive, send))
        answering.add_done_callback(lambda task: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": [*message["headers"], (REPLICA, self._name)]}
                yield message
            await answering
        finally:
            gone.set()
            with suppress(Exception):
                await answering

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.stop()


class Front:
    """Who may ask, and whom: it reads a request within the limits and passes it on."""

    def __init__(self, replicas: DeploymentHandle[Any], arguments: Arguments) -> None:
        self._replicas, self._limits = replicas.options(stream=True), arguments.limits

    def __serve_build_asgi_app__(self) -> Guard:
        settings = Settings(key=read_key(None, os.environ.get("DIVPRUNE_API_KEY")))
        return Guard(self._pass_on, Access(settings.key, settings.hosts), self._limits)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        body, more = [], True
        while more:
            message = await receive()
            body.append(message.get("body", b""))
            more = message.get("more_body", False)
            if message["type"] == "http.disconnect":
                return
        whole = b"".join(body)
        replicas = self._replicas
        if scope["method"] == "POST" and whole:
            asked = await asyncio.to_thread(read_request, whole, self._limits.json_items)
            replicas = replicas.options(session_id=session_of(asked))
        carried = {name: scope[name] for name in _CARRIED if name in scope}
        messages = replicas.answer.remote(carried, whole)
        passing = asyncio.ensure_future(_pass(messages, send))
        leaving = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({passing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                await passing
        finally:
            if not passing.done():
                messages.cancel()
            for task in (passing, leaving):
                task.cancel()


async def _pass(messages: AsyncIterator[Message], send: Send) -> None:
    """Send what a replica says; where it fails, say so."""
    streams = begun = False
    try:
        async for message in messages:
            if message["type"] == "http.response.start":
                begun = True
                kind = dict(message["headers"]).get(b"content-type", b"")
                streams = kind.startswith(b"text/event-stream")
            await send(message)
    except BackPressureError:
        raise UserError(
            "The server has as many questions as it takes: ask again later.", code="server-busy"
        ) from None
    except Exception as error:  # whatever became of the replica
        told = error if isinstance(error, DivpruneError) else internal()
        if not begun:
            raise told from error
        if streams:
            await send(
                {"type": "http.response.body", "body": event_text(error_fields(told)), "more_body": False}
            )


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def session_of(asked: ChatRequest) -> str:
    """Return what requests have in common that are best answered by one replica: their first image, or first text."""
    urls = [url for message in asked.messages for url in message.urls]
    text = urls[0].partition(",")[2] or urls[0] if urls else asked.messages[0].text
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def application(given: Mapping[str, Any]) -> Any:
    """Return the application for ``serve run`` or :func:`ray.serve.run`; see :class:`Arguments`.

    Raises:
        UserError: an argument that cannot be meant.
    """
    try:
        arguments = Arguments.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(
            f"'{name}': {first['msg']}; expected are {', '.join(Arguments.model_fields)}.",
            code="serve-arguments",
        ) from None
    limits = arguments.limits
    replicas = serve.deployment(
        num_replicas=arguments.replicas,
        # One that is full does not answer that it is: Ray asks the next one.
        max_ongoing_requests=limits.slots + limits.queue,
        max_queued_requests=arguments.replicas * limits.queue,
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        graceful_shutdown_timeout_s=limits.drain_seconds,
    )(Replica)
    front = serve.deployment(
        max_ongoing_requests=limits.connections,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress()(Front))
    return front.bind(replicas.bind(arguments), arguments)
