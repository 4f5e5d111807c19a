"""Prompts of bodies as token ids, and how long their answers may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skynet.gateway.answer_form import AnswerForm
from skynet.gateway.clusters import Served
from skynet.gateway.errors import ApiError
from skynet.gateway.schemas.chat import ChatBody
from skynet.request.prompts import check_token_ids, token_ids
from skynet.tokenizer.chat_options import ChatOptions

EFFORT = ("reasoning_effort", "enable_thinking")


@dataclass(frozen=True)
class EncodedPrompt:
    """text: what was encoded; "" if token ids were sent."""

    ids: list[int]
    text: str = ""


def chat_prompt(served: Served, body: ChatBody, form: AnswerForm) -> EncodedPrompt:
    """The prompt that the model's chat template makes.

    Raises:
        BadRequest: no template, or it refuses the messages.
    """
    arguments = body.template_arguments()
    if form.is_generic:  # the template reads no tools
        arguments.pop("tools", None)
    text = served.model.text
    options = _read(ChatOptions.checked(**arguments), text.chat_variables)
    rendered = text.chat_text(form.described(body.messages), options)
    return EncodedPrompt(text.encode_rendered(rendered), rendered)


def _read(options: ChatOptions, variables: frozenset[str]) -> ChatOptions:
    """The options without effort and thinking where the template has neither: clients send them to
    any model."""
    kwargs = {
        name: value
        for name, value in options.chat_template_kwargs.items()
        if name not in EFFORT or name in variables
    }
    return replace(options, chat_template_kwargs=kwargs)


def completion_prompt(served: Served, prompt: str | Sequence[int]) -> EncodedPrompt:
    """A text, or token ids, which are checked."""
    if isinstance(prompt, str):
        return EncodedPrompt(token_ids(prompt, served.model.text, raw=True), prompt)
    ids = check_token_ids(prompt, served.model.vocab_size)
    if not ids:
        raise ApiError(400, "prompt: empty", param="prompt", code="invalid_value")
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
            extra={"n_prompt_tokens": prompt_tokens, "n_ctx": served.max_tokens},
        )
    return room if asked is None else min(asked, room)
