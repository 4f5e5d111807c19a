"""/v1/chat/completions, and its answers again for a client that lost its connection."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from skynet.gateway.chat import KIND, start_chat
from skynet.gateway.chat_chunks import chat_completion, chat_events
from skynet.gateway.gateway import gateway_of
from skynet.gateway.reply import reply
from skynet.gateway.resume import position_of, resumed
from skynet.gateway.run import Run, origin_of
from skynet.gateway.schemas.body import ignored_header
from skynet.gateway.schemas.chat import ChatBody
from skynet.gateway.schemas.generation import PASSED, StreamOptions
from skynet.gateway.sse import Event

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatBody) -> Response:
    """Answer a chat, whole or as a stream of events."""
    headers = ignored_header(body.ignored(PASSED))
    options = body.stream_options or StreamOptions()

    async def start() -> Run:
        return await start_chat(gateway_of(request), origin_of(request), body)

    def events(run: Run) -> AsyncGenerator[Event]:
        return chat_events(run, options.include_usage, options.continuous_usage_stats)

    return await reply(request, start, chat_completion, events if body.streams else None, headers)


@router.get("/v1/chat/completions/{completion_id}")
async def get_chat_completion(
    request: Request,
    completion_id: str,
    stream: bool = False,
    starting_after: str = "",
    include_usage: bool = False,
) -> Response:
    """An answer again, or the rest of its stream after an event's id.

    The id is that of the events; the header `Last-Event-ID` names it, or `starting_after`.
    """
    after = position_of(request, starting_after)

    async def start() -> Run:
        return await resumed(request, completion_id.removeprefix("chatcmpl-"), KIND)

    def events(run: Run) -> AsyncGenerator[Event]:
        return chat_events(run, include_usage, after=after)

    return await reply(request, start, chat_completion, events if stream else None)
