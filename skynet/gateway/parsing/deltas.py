"""The pieces of an assistant's message, as they are streamed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCallDelta:
    """A fragment of a tool call; `id` and `name` are in the first fragment of a call only."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """One piece: of the content, of the reasoning, or of a tool call."""

    content: str = ""
    reasoning: str = ""
    tool_call: ToolCallDelta | None = None
