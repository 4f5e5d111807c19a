"""Prompts of bodies as token ids, and how long their answers may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skynet.gateway.clusters import Served
from skynet.gateway.errors import NO_RETRY, ApiError
from skynet.gateway.schemas.chat import ChatBody
from skynet.request.prompts import check_token_ids, token_ids


@dataclass(frozen=True)
class EncodedPrompt:
    """text: what was encoded; "" if token ids were sent."""

    ids: list[int]
    text: str = ""


def chat_prompt(served: Served, body: ChatBody) -> EncodedPrompt:
    """The prompt that the model's chat template makes.

    Raises:
        BadRequest: no template, or it refuses the messages.
    """
    text = served.model.text.render(body.messages, **body.template_arguments())
    return EncodedPrompt(served.model.text.encode_rendered(text), text)


def completion_prompt(served: Served, prompt: str | Sequence[int]) -> EncodedPrompt:
    """A text, or token ids, which are checked."""
    if isinstance(prompt, str):
        return EncodedPrompt(token_ids(prompt, served.model.text, raw=True), prompt)
    ids = check_token_ids(prompt, served.model.vocab_size)
    if not ids:
        raise ApiError(400, "prompt: empty", param="prompt", code="invalid_value", headers=NO_RETRY)
    return EncodedPrompt(ids)


def answer_limit(served: Served, prompt_tokens: int, asked: int | None, param: str) -> int:
    """The longest answer: what is asked for, at most what the prompt leaves of the context.

    asked: None: to the end of the context.

    Raises:
        ApiError: 400, the prompt leaves no room, in words that clients know.
    """
    room = served.max_tokens - (1 if served.model.has_encoder else prompt_tokens)
    if room < 1 and not (asked == 0 and room == 0):
        wanted = 1 if asked is None else max(1, asked)
        raise ApiError(
            400,
            f"This model's maximum context length is {served.max_tokens} tokens. However, you "
            f"requested {prompt_tokens + wanted} tokens ({prompt_tokens} in the {param}, {wanted} "
            f"in the completion). Please reduce the length of the {param} or completion.",
            code="context_length_exceeded",
            param=param,
            headers=NO_RETRY,
            extra={"n_prompt_tokens": prompt_tokens, "n_ctx": served.max_tokens},
        )
    return room if asked is None else min(asked, room)
