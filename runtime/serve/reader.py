"""From a request's body to its question, in threads: of images from elsewhere, too, for as long as that may take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from divprune_edge.runtime.serve.catalog import Catalog
from divprune_edge.runtime.serve.job import Conversation
from divprune_edge.runtime.serve.limits import ServerLimits
from divprune_edge.runtime.serve.reading import question_of
from divprune_edge.runtime.serve.remote import Errand, Fetcher
from divprune_edge.runtime.serve.schema import ChatRequest, read_request

_READING, _CALLING = 2, 8
"""Requests that are read at a time, and those whose images lie elsewhere, which delay no others."""


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class RequestReader:
    """Reads requests; ``fetcher`` gets images from addresses."""

    def __init__(self, catalog: Catalog, limits: ServerLimits, fetcher: Fetcher) -> None:
        self._catalog, self._limits, self._fetcher = catalog, limits, fetcher
        self._threads = ThreadPoolExecutor(_READING, "reading")
        self._calls = asyncio.Semaphore(_CALLING)

    async def __call__(
        self, body: bytes, hold: Callable[[int], None], gone: asyncio.Task[None]
    ) -> tuple[ChatRequest, Conversation]:
        """Return what a body asks; ``hold`` counts the bytes of images that lie elsewhere.

        Raises:
            UserError: it asks for what there is not, or more than the limits; or an image does not come.
            ClientGone: its client is ``gone`` before that is there.
        """
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._threads, read_request, body, self._limits.json_items)
        errand = self._fetcher.errand(hold)
        work = partial(question_of, asked, self._catalog, self._limits, errand)
        if asked.calls_out:
            return asked, await self._call(work, errand, gone)
        return asked, await loop.run_in_executor(self._threads, work)

    async def _call(
        self, work: Callable[[], Conversation], errand: Errand, gone: asyncio.Task[None]
    ) -> Conversation:
        working = asyncio.ensure_future(self._in_a_thread(work))
        try:
            await asyncio.wait({working, gone}, timeout=errand.left, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise ClientGone
            raise errand.late()
        finally:
            working.cancel()
            errand.cut()

    async def _in_a_thread(self, work: Callable[[], Conversation]) -> Conversation:
        """Run it where it keeps no process alive: a name server may not answer for minutes."""
        await self._calls.acquire()
        loop, future = asyncio.get_running_loop(), Future[Conversation]()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            with suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(self._calls.release)

        threading.Thread(target=run, name="calling", daemon=True).start()
        return await asyncio.wrap_future(future)
