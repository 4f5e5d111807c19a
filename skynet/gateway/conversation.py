"""Conversations of other APIs as messages of chats.

Those APIs have items or blocks where a chat has fields of one message: what an assistant thought,
wrote and called becomes one message. Texts of one role that follow each other are joined: many
chat templates want roles to alternate, and one system message at the beginning.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from skynet.gateway.errors import ApiError, invalid_body
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.chat import ChatBody

SYSTEM = ("system", "developer")


class Conversation:
    """Messages as they are added."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning = ""  # of the assistant's next message

    def add_text(self, role: str, text: str) -> None:
        """A message, or more text of the last one if that has the same role."""
        role = "system" if role in SYSTEM else role
        last = self._assistant() if role == "assistant" else self._last()
        if last is None or last["role"] != role:
            self.messages.append({"role": role, "content": text})
        else:
            last["content"] = "\n\n".join(filter(None, (last["content"], text)))

    def add_reasoning(self, text: str) -> None:
        """What the assistant thought before what is added next."""
        if text:
            self._reasoning += f"\n{text}" if self._reasoning else text

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        """A call of a tool. arguments: JSON."""
        function = {"name": name, "arguments": arguments}
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def add_result(self, call_id: str, text: str) -> None:
        """What a tool answered."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def _assistant(self) -> dict[str, Any]:
        """The assistant's message that is added to: reasoning begins a new one after a text."""
        last = self._last()
        if last is None or last["role"] != "assistant" or (self._reasoning and last["content"]):
            last = {"role": "assistant", "content": ""}
            self.messages.append(last)
        if self._reasoning:
            thoughts = (last.get("reasoning_content"), self._reasoning)
            last["reasoning_content"] = "\n".join(filter(None, thoughts))
            self._reasoning = ""
        return last

    def _last(self) -> dict[str, Any] | None:
        return self.messages[-1] if self.messages else None


def text_of(parts: Any, where: str, types: frozenset[str]) -> str:
    """The text of a content: a text, or parts of these types.

    Raises:
        ApiError: 400, a part has another type, such as an image.
    """
    if parts is None:
        return ""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, list):
        raise refuse(where, "expected a text or a list of parts", "invalid_value")
    return "\n".join(_part(part, f"{where}[{n}]", types) for n, part in enumerate(parts))


def _part(part: Any, where: str, types: frozenset[str]) -> str:
    if isinstance(part, str):
        return part
    kind = field(part, "type", where)
    if kind not in types:
        raise unsupported(where, kind)
    return field(part, "refusal" if kind == "refusal" else "text", where)


def field(item: Any, name: str, where: str, default: str | None = None) -> str:
    """A text field of an object.

    Raises:
        ApiError: 400, it is missing, or no text.
    """
    if not isinstance(item, dict):
        raise refuse(where, "expected an object", "invalid_value")
    value = item.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise refuse(f"{where}.{name}", "expected a text", "invalid_value")
    return value


def unsupported(where: str, kind: str) -> ApiError:
    """The answer to an item, block or tool of a type that is not supported."""
    return refuse(where, f"type {kind!r:.80} is not supported", "unsupported_value")


def chat_body(fields: dict[str, Any]) -> ChatBody:
    """The body of a chat with the fields that are not None.

    Raises:
        ApiError: 400, names what is wrong.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatBody.model_validate(given)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise invalid_body([{**each, "loc": ("body", *each["loc"])} for each in problems]) from None
