"""HTTP connections that do not wait for ever: neither for a request's head, nor for a client to take its answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from divprune_edge.runtime.serve.limits import ServerLimits


def bounded_protocol(limits: ServerLimits) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits on connections and on their time."""

    class BoundedProtocol(H11Protocol):
        _patience: asyncio.TimerHandle | None = None
        _taking: asyncio.TimerHandle | None = None
        _idle_since = 0.0
        _cut = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Whatever is not sent yet is waited for: else a small rest could stay here for ever.
            transport.set_write_buffer_limits(0)
            self._idle_since = self.loop.time()
            self._make_room()
            if not self._cut:
                self._expect_head()

        def on_response_complete(self) -> None:
            self._idle_since = self.loop.time()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop("_patience")
            self._stop("_taking")
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            # A client may send its next request by the byte: the time runs from the first one.
            if self._patience is None and self._is_idle:
                self._expect_head()
            super().data_received(data)
            if not self._is_idle:
                self._stop("_patience")

        def pause_writing(self) -> None:
            super().pause_writing()
            self._taking = self.loop.call_later(limits.send_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop("_taking")
            super().resume_writing()

        def _make_room(self) -> None:
            """Where there are too many connections, cut an idle one, or this one where none is.

            It is one of whoever has the most, and of these the oldest: nobody's idle connections keep others out.
            """
            held = [one for one in self.connections if isinstance(one, BoundedProtocol) and not one._cut]
            if len(held) <= limits.connections:
                return
            of = Counter(one._address for one in held)
            idle = (one for one in held if one is not self and one._is_idle and not one._is_sending)
            cut = max(idle, key=lambda one: (of[one._address], -one._idle_since), default=self)
            cut._cut = True
            cut.transport.abort()

        @property
        def _address(self) -> str:
            return self.client[0] if self.client else ""

        @property
        def _is_sending(self) -> bool:
            return self.transport.get_write_buffer_size() > 0

        @property
        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _expect_head(self) -> None:
            self._patience = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _stop(self, timer: str) -> None:
            handle = getattr(self, timer)
            if handle is not None:
                handle.cancel()
                setattr(self, timer, None)

    return BoundedProtocol
