"""HTTP connections that do not wait for ever: neither for a request's head, nor for a client to take its answer."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from divprune_edge.runtime.serve.limits import Limits


def bounded_protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits on connections and on their time."""

    class BoundedProtocol(H11Protocol):
        _patience: asyncio.TimerHandle | None = None
        _taking: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            # Whatever is not sent yet is waited for: else a small rest could stay here for ever.
            transport.set_write_buffer_limits(0)
            if len(self.connections) > limits.connections:
                transport.abort()
                return
            self._expect_head()

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
