"""The messages of a chat, checked and in the form that a template reads. Knows no templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skynet.errors import BadRequest
from skynet.tokenizer.chat_options import plain

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field, as Transformers
PART_SEPARATOR = "\n"  # between text parts that are joined
MAX_MESSAGES = 65_536


@dataclass(frozen=True)
class MessageForm:
    """What a template reads.

    parts: content as a list of parts. texts: content as a text.
    developer: messages of the role `developer`; others read them as `system`.
    """

    parts: bool = False
    texts: bool = True
    developer: bool = False


def chat_messages(messages: Any, form: MessageForm) -> list[dict[str, Any]]:
    """Copies of the messages, of JSON's types only.

    Fields that are None are left out. Text parts are joined for a template that reads texts.
    Arguments of tool calls that are a text are parsed. Reasoning is passed under each of its names.

    Raises:
        BadRequest: not a list of {role, content}; names the message and the field.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise BadRequest("messages: expected a list of at least one {role, content}")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(f"messages: {len(messages)} messages, at most {MAX_MESSAGES}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            kind = type(message).__name__
            raise BadRequest(f"messages[{index}]: expected {{role, content}}, got {kind}")
    return [_message(f"messages[{index}]", each, form) for index, each in enumerate(messages)]


def _message(where: str, given: Mapping[str, Any], form: MessageForm) -> dict[str, Any]:
    for name in ("role", "name", "tool_call_id"):
        value = given.get(name)
        if not isinstance(value, str) and (name == "role" or value is not None):
            raise BadRequest(f"{where}.{name}: expected text, got {type(value).__name__}")
    _check_content(where, given)
    copy = plain(where, dict(given))
    message = {name: value for name, value in copy.items() if value is not None}
    if message["role"] == "developer" and not form.developer:
        message["role"] = "system"
    if "content" in message:
        message["content"] = _content(message["content"], form)
    if message.get("tool_calls") == []:
        del message["tool_calls"]
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(f"{where}.tool_calls", message["tool_calls"])
    elif "content" not in message:  # an assistant that said nothing
        message["content"] = _content("", form)
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is None:
        return message
    return {**dict.fromkeys(REASONING[1:], reasoning), **message, REASONING[0]: reasoning}


def _check_content(where: str, message: Mapping[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message["role"] == "assistant"):
        return
    if isinstance(content, (bytes, bytearray)) or not isinstance(content, Sequence):
        kind = type(content).__name__
        raise BadRequest(f"{where}.content: expected text, got {kind}")
    for index, part in enumerate(content):
        name = f"{where}.content[{index}]"
        if not isinstance(part, Mapping):
            raise BadRequest(f'{name}: expected {{"type": "text"}}, got {type(part).__name__}')
        if part.get("type") != "text":
            kind = repr(part.get("type"))
            raise BadRequest(f"{name}: type {kind:.80} is not supported, only text is")
        if not isinstance(part.get("text"), str):
            kind = type(part.get("text")).__name__
            raise BadRequest(f"{name}.text: expected text, got {kind}")


def _content(content: str | list[dict[str, Any]], form: MessageForm) -> Any:
    if isinstance(content, str):
        return content if form.texts else [{"type": "text", "text": content}]
    if form.parts:
        return content
    return PART_SEPARATOR.join(part["text"] for part in content)


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """The calls, with their arguments as objects: a text would be quoted by `tojson`."""
    if not isinstance(calls, list):
        raise BadRequest(f"{where}: expected a list, got {type(calls).__name__}")
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f'{where}[{index}]: expected {{"function": {{name, arguments}}}}')
        function["arguments"] = _arguments(
            f"{where}[{index}].function.arguments", function.get("arguments")
        )
    return calls


def _arguments(where: str, arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{where}: not JSON: {error}") from error
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise BadRequest(f"{where}: expected an object, got {type(arguments).__name__}")
    return arguments
