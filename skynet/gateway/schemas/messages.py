"""The bodies of /v1/messages and its count_tokens, Anthropic's, and the chat that they mean."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from skynet.gateway.conversation import Conversation, chat_body, field, text_of, unsupported
from skynet.gateway.schemas.body import Body, Objects, Texts, refuse
from skynet.gateway.schemas.chat import MAX_MESSAGES, MAX_TOOLS, ChatBody
from skynet.gateway.schemas.structure import ResponseFormat

TEXT = frozenset({"text"})
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Claude Code's first line of a system prompt, other in each request: it would end prefix caching.
BILLING = "x-anthropic-billing-header:"
UNSUPPORTED = {
    "container": "containers are not supported",
    "mcp_servers": "the client calls tools",
}
WITHOUT_EFFECT = frozenset(
    {
        "betas",
        "cache_control",
        "context_management",
        "diagnostics",
        "inference_geo",
        "speed",
        "user_profile_id",
    }
)


class Thinking(BaseModel):
    """type: enabled, adaptive or disabled. The template gets it as enable_thinking."""

    model_config = ConfigDict(extra="allow")

    type: Literal["enabled", "adaptive", "disabled"]


class OutputConfig(BaseModel):
    """effort: as reasoning_effort. format: a JSON schema that the answer follows."""

    model_config = ConfigDict(extra="allow")

    effort: str | None = Field(None, max_length=32)
    format: ResponseFormat | None = None


class ToolChoice(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, max_length=128)
    disable_parallel_tool_use: bool | None = None


class CountBody(Body):
    """Of /v1/messages/count_tokens."""

    messages: Objects = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | Objects | None = None
    tools: Objects | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: ResponseFormat | None = None

    def chat(self, passed: frozenset[str]) -> ChatBody:
        """The same as a chat.

        passed: names of engine options that a body may have.

        Raises:
            ApiError: 400, something is not supported, or malformed.
        """
        for name, why in UNSUPPORTED.items():
            if self.extras().get(name):
                raise refuse(name, why, "unsupported_parameter")
        return chat_body({**self._fields(), **self._named(passed)})

    def _fields(self) -> dict[str, Any]:
        output = self.output_config or OutputConfig()
        messages = self._messages()
        tools = [_tool(each, f"tools[{n}]") for n, each in enumerate(self.tools or ())]
        fields = {
            "model": self.model,
            "messages": messages,
            "tools": tools or None,
            "reasoning_effort": output.effort,
            "response_format": _schema(output.format or self.output_format),
            **self._choice(),
        }
        if self.thinking is not None:
            enabled = self.thinking.type != "disabled"
            fields["chat_template_kwargs"] = {"enable_thinking": enabled}
        if messages[-1]["role"] == "assistant":  # the answer's beginning
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return fields

    def _named(self, passed: frozenset[str]) -> dict[str, Any]:
        return {name: value for name, value in self.extras().items() if name in passed}

    def _choice(self) -> dict[str, Any]:
        choice = self.tool_choice
        if choice is None or not self.tools:
            return {}
        fields: dict[str, Any] = {"tool_choice": CHOICES.get(choice.type)}
        if choice.type == "tool":
            if not choice.name:
                raise refuse("tool_choice.name", "missing", "invalid_value")
            fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
        if choice.disable_parallel_tool_use is not None:
            fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
        return fields

    def _messages(self) -> list[dict[str, Any]]:
        conversation = Conversation()
        _add_system(conversation, self.system or [], "system")
        for number, message in enumerate(self.messages):
            where = f"messages[{number}]"
            role, content = field(message, "role", where), message.get("content")
            if role == "system":  # as newer versions of Claude Code send it
                _add_system(conversation, content, f"{where}.content")
            elif role == "user":
                _add_user(conversation, content, f"{where}.content")
            elif role == "assistant":
                _add_assistant(conversation, content, f"{where}.content")
            else:
                raise refuse(f"{where}.role", f"{role!r:.80}: user or assistant", "invalid_value")
        if not conversation.messages:
            raise refuse("messages", "they are empty", "invalid_value")
        return conversation.messages


class MessagesBody(CountBody):
    """Of /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Texts | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    service_tier: str | None = Field(None, max_length=32)

    def _fields(self) -> dict[str, Any]:
        return {
            **super()._fields(),
            "max_tokens": self.max_tokens,
            "stop": self.stop_sequences or None,
            "stream": self.stream,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
        }


def _schema(given: ResponseFormat | None) -> dict[str, Any] | None:
    return None if given is None else given.model_dump(exclude_none=True, by_alias=True)


def _tool(tool: dict[str, Any], where: str) -> dict[str, Any]:
    kind = field(tool, "type", where, "custom")
    if kind != "custom":
        raise unsupported(where, kind)
    function: dict[str, Any] = {
        "name": field(tool, "name", where),
        "parameters": tool.get("input_schema") or {"type": "object"},
    }
    if tool.get("description"):
        function["description"] = tool["description"]
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _add_system(conversation: Conversation, content: Any, where: str) -> None:
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(blocks, list):
        blocks = [each for each in blocks if not _is_billing(each)]
    if text := text_of(blocks, where, TEXT):
        conversation.add_text("system", text)


def _is_billing(block: Any) -> bool:
    return isinstance(block, dict) and str(block.get("text", "")).startswith(BILLING)


def _add_user(conversation: Conversation, content: Any, where: str) -> None:
    """Results of tools are messages of their own; texts between them stay together."""
    texts: list[str] = []
    for number, block in enumerate(_blocks(content, where)):
        here = f"{where}[{number}]"
        kind = field(block, "type", here)
        if kind == "text":
            texts.append(field(block, "text", here))
        elif kind == "tool_result":
            _add_user_text(conversation, texts)
            text = text_of(block.get("content"), f"{here}.content", TEXT)
            conversation.add_result(field(block, "tool_use_id", here), text)
        else:
            raise unsupported(here, kind)
    _add_user_text(conversation, texts)


def _add_user_text(conversation: Conversation, texts: list[str]) -> None:
    if texts:
        conversation.add_text("user", "\n".join(texts))
        texts.clear()


def _add_assistant(conversation: Conversation, content: Any, where: str) -> None:
    for number, block in enumerate(_blocks(content, where)):
        here = f"{where}[{number}]"
        kind = field(block, "type", here)
        if kind == "text":
            conversation.add_text("assistant", field(block, "text", here))
        elif kind == "thinking":
            conversation.add_reasoning(field(block, "thinking", here))
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            call_id, name = field(block, "id", here), field(block, "name", here)
            conversation.add_call(call_id, name, arguments)
        elif kind != "redacted_thinking":  # which only its server can read
            raise unsupported(here, kind)


def _blocks(content: Any, where: str) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise refuse(where, "expected a text or a list of blocks", "invalid_value")
    return content
