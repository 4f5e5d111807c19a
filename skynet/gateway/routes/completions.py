"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from skynet.gateway.completions import (
    KIND,
    completion,
    completion_events,
    start_completions,
)
from skynet.gateway.gateway import gateway_of
from skynet.gateway.reply import reply
from skynet.gateway.resume import position_of, resumed
from skynet.gateway.run import Run, origin_of
from skynet.gateway.schemas.body import ignored_header
from skynet.gateway.schemas.completion import CompletionBody
from skynet.gateway.schemas.generation import PASSED, StreamOptions
from skynet.gateway.sse import Event

router = APIRouter(tags=["completions"])


@router.post("/v1/completions")
async def create_completion(request: Request, body: CompletionBody) -> Response:
    """Continue one or several prompts, whole or as a stream of events."""
    headers = ignored_header(body.ignored(PASSED))
    options = body.stream_options or StreamOptions()

    async def start() -> Run:
        return await start_completions(gateway_of(request), origin_of(request), body)

    def events(run: Run) -> AsyncGenerator[Event]:
        return completion_events(run, options.include_usage, options.continuous_usage_stats)

    return await reply(request, start, completion, events if body.streams else None, headers)


@router.get("/v1/completions/{completion_id}")
async def get_completion(
    request: Request,
    completion_id: str,
    stream: bool = False,
    starting_after: str = "",
    include_usage: bool = False,
) -> Response:
    """An answer to one prompt again, or the rest of its stream: see /v1/chat/completions."""
    after = position_of(request, starting_after)

    async def start() -> Run:
        return await resumed(request, completion_id.removeprefix("cmpl-"), KIND)

    def events(run: Run) -> AsyncGenerator[Event]:
        return completion_events(run, include_usage, after=after)

    return await reply(request, start, completion, events if stream else None)
