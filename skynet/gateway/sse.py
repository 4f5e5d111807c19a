"""Server-sent events, as OpenAI's clients read them.

Proxies cut connections that are silent for a minute, and a prompt or a recovery may take longer:
a comment is sent at once, and whenever nothing was sent for a while.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from skynet.gateway.answers import finished

HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would collect the stream
}
DONE = "[DONE]"


@dataclass(frozen=True)
class Event:
    """One event. data: JSON, or a text as it is. name, id: of the event, "" for none."""

    data: dict[str, Any] | str
    name: str = ""
    id: str = ""

    def encode(self) -> bytes:
        """The event's bytes; no field can hold a line break."""
        lines = [f"event: {self.name}"] if self.name else []
        lines += [f"id: {self.id}"] if self.id else []
        data = self.data if isinstance(self.data, str) else json.dumps(self.data)
        lines += [f"data: {line}" for line in data.split("\n")]
        return ("\n".join(lines) + "\n\n").encode()


def comment(text: str) -> bytes:
    """A line that clients ignore.

    No empty line follows: openai-python takes one for the end of an event without data if an
    earlier event had an id.
    """
    return f": {' '.join(text.split())}\n".encode()


class EventStream(StreamingResponse):
    """An answer that is a stream of events.

    events: is closed when the client leaves.
    keep_alive_s: between comments while no event comes.
    describe: the text of such a comment.
    closed: called at the end, also where the client has left before `events` has begun: closing
        a generator does nothing then.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[Event],
        keep_alive_s: float,
        describe: Callable[[], Awaitable[str]],
        headers: dict[str, str] | None = None,
        closed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._pieces = with_comments(events, keep_alive_s, describe)
        self._closed = closed
        super().__init__(self._pieces, headers={**HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await finished(self._close())

    async def _close(self) -> None:
        await self._pieces.aclose()
        if self._closed is not None:
            await self._closed()


async def with_comments(
    events: AsyncGenerator[Event], keep_alive_s: float, describe: Callable[[], Awaitable[str]]
) -> AsyncGenerator[bytes]:
    """The events' bytes, and comments while none comes."""
    yield comment("ok")
    upcoming: asyncio.Future[Event] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({upcoming}, timeout=keep_alive_s)
            if not done:
                yield comment(await describe())
                continue
            try:
                event = upcoming.result()
            except StopAsyncIteration:
                return
            finally:
                upcoming = None
            yield event.encode()
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.wait({upcoming})
        await events.aclose()
