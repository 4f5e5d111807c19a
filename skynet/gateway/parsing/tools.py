"""The `tools` and `tool_choice` of a request, checked. Knows no models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from skynet.errors import BadRequest

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
CHOICES = ("none", "auto", "required")

Tool = Mapping[str, Any]


def check_tools(tools: Sequence[Tool]) -> None:
    """
    Raises:
        BadRequest: a tool is not a function with a name and a schema; names it.
    """
    if not tools:
        raise BadRequest("tools: empty; leave it out")
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools: {len(tools)} tools, at most {MAX_TOOLS}")
    names = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.get("type", "function") != "function":
            raise BadRequest(f"{where}.type {tool['type']!r:.80} is not supported, only function")
        function = tool.get("function")
        if not isinstance(function, Mapping):
            raise BadRequest(f"{where}.function: expected an object")
        name = function.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadRequest(
                f"{where}.function.name {name!r:.80}: 1 to 64 letters, digits, '_', '-' or '.'"
            )
        if name in names:
            raise BadRequest(f"{where}.function.name {name!r}: a second tool of this name")
        names.add(name)
        parameters = function.get("parameters")
        if parameters is None:
            continue
        if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
            raise BadRequest(f"{where}.function.parameters: expected a schema of type object")


def forced_tools(tools: Sequence[Tool], tool_choice: Any) -> list[Tool] | None:
    """The tools of which one must be called; None if none must.

    tool_choice: "none", "auto", "required", {"type": "function", "function": {"name": ...}}, or
        None for "auto".

    Raises:
        BadRequest: another choice, or of a tool that the request does not have.
    """
    if tool_choice is None or tool_choice in CHOICES[:2]:
        return None
    if tool_choice == "required":
        return [*tools]
    function = tool_choice.get("function") if isinstance(tool_choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or tool_choice.get("type", "function") != "function":
        raise BadRequest(
            f"tool_choice {tool_choice!r:.80}: one of {', '.join(CHOICES)}, or "
            '{"type": "function", "function": {"name": ...}}'
        )
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        raise BadRequest(f"tool_choice {name!r:.80}: no tool has this name")
    return named
