"""The body of /v1/chat/completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from skynet.gateway.schemas.body import Objects, Texts, refuse
from skynet.gateway.schemas.generation import GenerationBody
from skynet.gateway.schemas.structure import ResponseFormat, structured_outputs

MAX_MESSAGES = 10_000
MAX_TOOLS = 256


class ChatBody(GenerationBody):
    """A chat; messages are checked by the chat template."""

    messages: Objects = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Objects | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    reasoning_effort: str | None = Field(None, max_length=32)
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Objects | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    modalities: Texts | None = None
    echo: bool | None = None
    chat_template: Literal[None] = None

    @property
    def limit(self) -> int | None:
        """The longest answer that is asked for, in tokens."""
        return self.max_completion_tokens or self.max_tokens

    def top(self) -> int | None:
        """How many of the likeliest tokens are reported with each; None: no log-probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise refuse("top_logprobs", "only with logprobs true", "invalid_value")
        return (self.top_logprobs or 0) if self.logprobs else None

    def structure(self) -> dict[str, Any] | None:
        """The option `structured_outputs`; None: free text."""
        return structured_outputs(self.response_format, self.structured_outputs)

    def template_arguments(self) -> dict[str, Any]:
        """What the chat template gets beside the messages."""
        named = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            named.setdefault("reasoning_effort", self.reasoning_effort)
            named.setdefault("enable_thinking", self.reasoning_effort != "none")
        arguments: dict[str, Any] = {"chat_template_kwargs": named} if named else {}
        if self.tools and self.tool_choice != "none":
            arguments["tools"] = self.tools
        for name in ("documents", "add_generation_prompt", "continue_final_message"):
            if (value := getattr(self, name)) is not None:
                arguments[name] = value
        return arguments

    def _check(self) -> None:
        super()._check()
        if self.modalities not in (None, [], ["text"]):
            raise refuse("modalities", f"{self.modalities!r:.80}: only text")
        if self.echo:
            raise refuse("echo", "only /v1/completions repeats its prompt")
        if self.tools == []:
            raise refuse("tools", "an empty list: leave it out", "invalid_value")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise refuse("tool_choice", "only with tools", "invalid_value")
