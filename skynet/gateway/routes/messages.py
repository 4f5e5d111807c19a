"""/v1/messages, Anthropic's API. Its headers anthropic-version and anthropic-beta are accepted, and
change nothing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from skynet.gateway.answer_form import AnswerForm
from skynet.gateway.chat import start_chat
from skynet.gateway.gateway import gateway_of, request_id_of
from skynet.gateway.messages import KIND, message, message_events, message_failed
from skynet.gateway.prompts import chat_prompt
from skynet.gateway.reply import reply
from skynet.gateway.run import Run, origin_of
from skynet.gateway.schemas.body import ignored_header
from skynet.gateway.schemas.generation import PASSED
from skynet.gateway.schemas.messages import UNSUPPORTED, WITHOUT_EFFECT, CountBody, MessagesBody

router = APIRouter(tags=["messages"])
KNOWN = PASSED | WITHOUT_EFFECT | frozenset(UNSUPPORTED)


@router.post("/v1/messages")
async def create_message(request: Request, body: MessagesBody) -> Response:
    """Answer a conversation, whole or as a stream of events."""
    chat, gateway = body.chat(PASSED), gateway_of(request)
    headers = _headers(request, body)

    async def start() -> Run:
        return await start_chat(gateway, origin_of(request), chat, KIND)

    events = message_events if body.stream else None
    return await reply(request, start, message, events, headers, message_failed)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request, body: CountBody) -> Response:
    """The tokens of a prompt, tools and the template's own included."""
    chat = body.chat(PASSED)
    cluster = await gateway_of(request).clusters.find(body.model)
    served = await cluster.served()
    form = await cluster.call(lambda: AnswerForm.of(served, chat))
    prompt = await cluster.call(lambda: chat_prompt(served, chat, form))
    return JSONResponse({"input_tokens": len(prompt.ids)}, headers=_headers(request, body))


@router.head("/", include_in_schema=False)
async def is_there() -> Response:
    """Claude Code asks before its first message."""
    return Response()


def _headers(request: Request, body: CountBody) -> dict[str, str]:
    return {"request-id": request_id_of(request), **ignored_header(body.ignored(KNOWN))}
