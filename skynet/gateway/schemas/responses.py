"""The body of /v1/responses, and the chat that it means."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skynet.gateway.conversation import Conversation, chat_body, field, text_of, unsupported
from skynet.gateway.schemas.body import Body, Objects, Texts, refuse
from skynet.gateway.schemas.chat import MAX_MESSAGES, MAX_TOOLS, ChatBody
from skynet.gateway.schemas.structure import ResponseFormat

TEXTS = frozenset({"input_text", "output_text", "text", "refusal"})
THOUGHTS = frozenset({"summary_text", "reasoning_text", "text"})
LOGPROBS = "message.output_text.logprobs"  # of `include`
# The server keeps no state: what refers to earlier answers cannot be done.
STATEFUL = {
    "background": "answers are not made in the background: stream, or submit a batch",
    "conversation": "conversations are not kept: send all items as input",
    "previous_response_id": "answers are not kept as context: send all earlier items as input",
    "prompt": "prompt templates are not kept: send instructions and input",
}
# Without effect: on storage, on caches, on tools of OpenAI's.
WITHOUT_EFFECT = frozenset(
    {
        "client_metadata",
        "context_management",
        "max_tool_calls",
        "prompt_cache_options",
        "truncation",
    }
)


class TextOptions(BaseModel):
    """format: as `response_format` of chats, but that a schema stands beside its type."""

    model_config = ConfigDict(extra="allow")

    format: ResponseFormat | None = None


class ReasoningOptions(BaseModel):
    """effort: what the chat template gets as reasoning_effort."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = Field(None, max_length=32)


class ResponsesBody(Body):
    """Of /v1/responses."""

    input: str | list[Any] | None = Field(None, max_length=4_000_000)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    metadata: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    text: TextOptions | None = None
    tool_choice: str | dict[str, Any] | None = None
    tools: Objects | None = Field(None, max_length=MAX_TOOLS)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_p: float | None = Field(None, ge=0, le=1)
    include: Texts | None = Field(None, max_length=32)

    def functions(self) -> list[dict[str, Any]]:
        """The tools that are functions; a client runs those."""
        return [tool for tool in self.tools or [] if tool.get("type") == "function"]

    def skipped(self) -> list[str]:
        """Types of tools that only OpenAI's servers run: agents send them always."""
        kinds = {str(tool.get("type"))[:40] for tool in self.tools or []} - {"function"}
        return [f"tools.{kind}" for kind in sorted(kinds)]

    def chat(self, passed: frozenset[str]) -> ChatBody:
        """The same as a chat.

        passed: names of engine options that a body may have.

        Raises:
            ApiError: 400, something is not supported, or malformed.
        """
        for name, why in STATEFUL.items():
            if self.extras().get(name):
                raise refuse(name, why, "unsupported_parameter")
        functions = self._chosen(self.functions())
        given = {
            "model": self.model,
            "messages": self._messages(),
            "max_completion_tokens": self.max_output_tokens,
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
            "response_format": self._format(),
            "service_tier": None if self.service_tier == "fast" else self.service_tier,
            "temperature": self.temperature,
            "tools": [_tool(tool, f"tools[{n}]") for n, tool in enumerate(functions)] or None,
            "tool_choice": self._choice() if functions or self._requires() else None,
            "top_p": self.top_p,
            "stream": self.stream,
            **{name: value for name, value in self.extras().items() if name in passed},
        }
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            given |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return chat_body(given)

    def _messages(self) -> list[dict[str, Any]]:
        conversation = Conversation()
        if self.instructions:
            conversation.add_text("system", self.instructions)
        items = self.input or ""
        if isinstance(items, str):
            conversation.add_text("user", items)
            return conversation.messages
        if len(items) > MAX_MESSAGES:
            raise refuse("input", f"{len(items)} items, at most {MAX_MESSAGES}", "invalid_value")
        for number, item in enumerate(items):
            _add_item(conversation, item, f"input[{number}]")
        if all(message["role"] == "system" for message in conversation.messages):
            conversation.add_text("user", "")  # as clients ask whether the server is there
        return conversation.messages

    def _format(self) -> dict[str, Any] | None:
        if self.text is None or self.text.format is None:
            return None
        given = self.text.format.model_dump(exclude_none=True, by_alias=True)
        if given["type"] != "json_schema" or "json_schema" in given:
            return given
        names = ("name", "schema", "strict", "description")
        return {"type": "json_schema", "json_schema": {n: given[n] for n in names if n in given}}

    def _requires(self) -> bool:
        return self.tool_choice not in (None, "auto", "none")

    def _choice(self) -> str | dict[str, Any] | None:
        choice = self.tool_choice
        if not isinstance(choice, dict):
            return choice
        kind = field(choice, "type", "tool_choice")
        if kind == "allowed_tools":
            return field(choice, "mode", "tool_choice", "auto")
        if kind != "function":
            raise unsupported("tool_choice", kind)
        return {"type": "function", "function": {"name": field(choice, "name", "tool_choice")}}

    def _chosen(self, functions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The functions that `tool_choice` allows."""
        choice = self.tool_choice
        if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
            return functions
        allowed = choice.get("tools")
        if not isinstance(allowed, list):
            raise refuse("tool_choice.tools", "expected a list", "invalid_value")
        names = [each.get("name") for each in allowed if isinstance(each, dict)]
        return [tool for tool in functions if tool.get("name") in names]


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    function = {"name": field(tool, "name", where)}
    for name in ("description", "parameters", "strict"):
        if tool.get(name) is not None:
            function[name] = tool[name]
    return {"type": "function", "function": function}


def _add_item(conversation: Conversation, item: Any, where: str) -> None:
    """Raises ApiError if the item's type is not supported."""
    kind = field(item, "type", where, "message")
    if kind == "message":
        role = field(item, "role", where)
        if role not in ("user", "assistant", "system", "developer"):
            raise refuse(f"{where}.role", f"{role!r:.80}: not known", "invalid_value")
        conversation.add_text(role, text_of(item.get("content"), f"{where}.content", TEXTS))
    elif kind == "reasoning":  # encrypted reasoning is of another server
        thought = item.get("content") or item.get("summary")
        conversation.add_reasoning(text_of(thought, f"{where}.content", THOUGHTS))
    elif kind == "function_call":
        name, arguments = field(item, "name", where), field(item, "arguments", where, "{}")
        conversation.add_call(field(item, "call_id", where), name, arguments or "{}")
    elif kind == "function_call_output":
        text = text_of(item.get("output"), f"{where}.output", TEXTS)
        conversation.add_result(field(item, "call_id", where), text)
    else:
        raise unsupported(where, kind)
