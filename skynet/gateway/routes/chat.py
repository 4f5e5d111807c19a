"""/v1/chat/completions, and its answers again for a client that lost its connection."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from skynet.gateway.chat import KIND, start_chat
from skynet.gateway.chat_chunks import chat_completion, chat_events
from skynet.gateway.gateway import gateway_of
from skynet.gateway.reply import reply_stream, reply_whole
from skynet.gateway.resume import position_of, resumed
from skynet.gateway.run import Run, origin_of
from skynet.gateway.schemas.body import ignored_header
from skynet.gateway.schemas.chat import ChatBody
from skynet.gateway.schemas.generation import PASSED, StreamOptions

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request, body: ChatBody) -> Response:
    """Answer a chat, whole or as a stream of events."""
    headers = ignored_header(body.ignored(PASSED))
    gateway = gateway_of(request)
    options = body.stream_options or StreamOptions()

    if not body.streams:
        return await reply_whole(
            request, lambda: start_chat(gateway, origin_of(request), body), chat_completion, headers
        )
    return await reply_stream(
        request,
        lambda: start_chat(gateway, origin_of(request), body),
        lambda run: chat_events(run, options.include_usage, options.continuous_usage_stats),
        headers,
    )


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

    if not stream:
        return await reply_whole(request, start, chat_completion)
    return await reply_stream(
        request, start, lambda run: chat_events(run, include_usage, after=after)
    )
