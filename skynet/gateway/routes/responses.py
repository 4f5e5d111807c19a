"""/v1/responses, without state: each request has the whole conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from starlette.responses import Response

from skynet.gateway.chat import start_chat
from skynet.gateway.gateway import gateway_of
from skynet.gateway.reply import reply
from skynet.gateway.responses import KIND, ResponseWriter, echo_of, kept
from skynet.gateway.resume import position_of, resumed
from skynet.gateway.run import Run, origin_of
from skynet.gateway.schemas.body import ignored_header
from skynet.gateway.schemas.generation import PASSED
from skynet.gateway.schemas.responses import STATEFUL, WITHOUT_EFFECT, ResponsesBody
from skynet.gateway.sse import Event

router = APIRouter(tags=["responses"])
KNOWN = PASSED | WITHOUT_EFFECT | frozenset(STATEFUL)


@router.post("/v1/responses")
async def create_response(request: Request, body: ResponsesBody) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    chat, gateway, echo = body.chat(PASSED), gateway_of(request), echo_of(body)
    headers = ignored_header(body.skipped() + body.ignored(KNOWN))
    writer = ResponseWriter(echo)

    async def start() -> Run:
        return await start_chat(gateway, origin_of(request), chat, KIND, {"echo": kept(echo)})

    events = writer.events if body.stream else None
    return await reply(request, start, writer.whole, events, headers, writer.failed)


@router.get("/v1/responses/{response_id}")
async def get_response(
    request: Request, response_id: str, stream: bool = False, starting_after: str = ""
) -> Response:
    """A response again, while its request is kept, or its stream after a sequence number.

    Without `x-skynet-on-disconnect: continue` a response ends when its first client leaves.
    """
    position = position_of(request, starting_after).partition(",")[0]
    writer = ResponseWriter()

    async def start() -> Run:
        return await resumed(request, response_id.removeprefix("resp_"), KIND)

    def events(run: Run) -> AsyncGenerator[Event]:
        return writer.events(run, int(position) if position else -1)

    chosen = events if stream else None
    return await reply(request, start, writer.whole, chosen, failed=writer.failed)
