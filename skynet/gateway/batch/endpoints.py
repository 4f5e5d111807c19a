"""What a line of a batch can ask for: the paths whose answers are one object."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from skynet.gateway.chat import start_chat
from skynet.gateway.chat_chunks import chat_completion
from skynet.gateway.completions import completion, start_completions
from skynet.gateway.embeddings import embeddings, start_embeddings
from skynet.gateway.errors import invalid_body
from skynet.gateway.gateway import Gateway
from skynet.gateway.run import Origin
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.chat import ChatBody
from skynet.gateway.schemas.completion import CompletionBody
from skynet.gateway.schemas.generation import PASSED
from skynet.gateway.schemas.text_tasks import EmbeddingBody


@dataclass(frozen=True)
class Endpoint:
    """body: the schema. answer: what the path answers."""

    body: type[Any]
    answer: Callable[[Gateway, Origin, Any], Awaitable[dict[str, Any]]]


async def _chat(gateway: Gateway, origin: Origin, body: ChatBody) -> dict[str, Any]:
    return await chat_completion(await start_chat(gateway, origin, _whole(body)))


async def _completion(gateway: Gateway, origin: Origin, body: CompletionBody) -> dict[str, Any]:
    return await completion(await start_completions(gateway, origin, _whole(body)))


async def _embeddings(gateway: Gateway, origin: Origin, body: EmbeddingBody) -> dict[str, Any]:
    body.ignored()
    return await embeddings(await start_embeddings(gateway, origin, body), body)


def _whole(body: Any) -> Any:
    if body.streams:
        raise refuse("stream", "a line of a batch is answered as a whole")
    body.ignored(PASSED)  # refuses what is not supported
    return body


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(ChatBody, _chat),
    "/v1/completions": Endpoint(CompletionBody, _completion),
    "/v1/embeddings": Endpoint(EmbeddingBody, _embeddings),
}
URLS = frozenset(ENDPOINTS)


async def answer(
    gateway: Gateway, origin: Origin, url: str, body: dict[str, Any]
) -> dict[str, Any]:
    """What the path answers to this body.

    Raises:
        ApiError, SkynetError: why it does not.
    """
    endpoint = ENDPOINTS[url]
    try:
        checked = endpoint.body.model_validate(body)
    except ValidationError as error:
        problems = [
            {**problem, "loc": ("body", *problem["loc"])}
            for problem in error.errors(include_url=False, include_context=False)
        ]
        raise invalid_body(problems) from None
    return await endpoint.answer(gateway, origin, checked)
