"""Connections that do not stay open without a request.

uvicorn waits for the head of a request for ever: a client that opens connections and sends nothing,
or a byte now and then, would take all there are.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 75.0  # after an answer: longer than proxies keep connections


def connection_class(receive_s: float) -> type[asyncio.Protocol]:
    """uvicorn's connection by h11, which limits heads, closed without a head after `receive_s`."""

    class Connection(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait_for_head(receive_s)

        def on_response_complete(self) -> None:
            self._wait_for_head(IDLE_S + receive_s)
            super().on_response_complete()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is None or self.cycle.response_complete:
                super().send_400_response(msg)
            else:  # uvicorn would write it into the answer that is being sent
                self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_waiting()

        def _wait_for_head(self, seconds: float) -> None:
            self._stop_waiting()
            self._head_timer = self.loop.call_later(seconds, self._give_up)

        def _stop_waiting(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()

        def _give_up(self) -> None:
            # Typed as never None, but there is no cycle before the first head.
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Connection
