"""Sends a run's answer, as one object or as a stream, until its client leaves."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from skynet.errors import SkynetError
from skynet.gateway.answers import ClientLeft, unless_left
from skynet.gateway.errors import ApiError, api_error
from skynet.gateway.gateway import Gateway, gateway_of
from skynet.gateway.run import Run
from skynet.gateway.sse import DONE, Event, EventStream

logger = logging.getLogger(__name__)

Start = Callable[[], Awaitable[Run]]
Whole = Callable[[Run], Awaitable[dict[str, Any]]]
Events = Callable[[Run], AsyncGenerator[Event]]
Failed = Callable[[ApiError], list[Event]]
NOBODY = Response(status_code=499)  # the client has left: it is not sent


async def reply_whole(
    request: Request, start: Start, whole: Whole, headers: dict[str, str] | None = None
) -> Response:
    """The answer as one object. If the client leaves, the run is cancelled, whatever its state.

    Raises:
        ApiError, SkynetError: why there is none.
    """

    async def answer() -> dict[str, Any]:
        return await whole(await start())

    gateway = gateway_of(request)
    async with gateway.answering():
        try:
            return JSONResponse(await unless_left(request, answer()), headers=headers)
        except ClientLeft:
            return NOBODY


async def reply(
    request: Request,
    start: Start,
    whole: Whole,
    events: Events | None,
    headers: dict[str, str] | None = None,
    failed: Failed | None = None,
) -> Response:
    """The answer as a stream of events, or as one object if `events` is None.

    failed: the events of an error that comes after the beginning; by default OpenAI's.

    Raises:
        ApiError, SkynetError: why there is none.
    """
    if events is None:
        return await reply_whole(request, start, whole, headers)
    gateway = gateway_of(request)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(gateway.answering())
        try:
            run = await unless_left(request, start())
        except ClientLeft:
            return NOBODY
        held = stack.pop_all()  # until the stream's end

    async def closed() -> None:
        try:
            await run.leave()
        finally:
            await held.aclose()

    stream = _guarded(gateway, run, events(run), failed or error_events)
    why_silent = run.cluster.why_silent
    return EventStream(stream, gateway.config.keep_alive_s, why_silent, headers, closed)


async def _guarded(
    gateway: Gateway,
    run: Run,
    events: AsyncGenerator[Event],
    failed: Failed,
) -> AsyncGenerator[Event]:
    """The events; an error is an event, too."""
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except SkynetError as error:
            for event in failed(api_error(error, retry_s=gateway.retry_s())):
                yield event
        except Exception:
            logger.exception("request %s: the stream failed", run.id)
            for event in failed(ApiError(500, "internal error", code="internal_error")):
                yield event


def error_events(error: ApiError) -> list[Event]:
    """OpenAI's: the error, then the end of the stream."""
    return [Event(error.body()), Event(DONE)]
