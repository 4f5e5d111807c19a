"""Items of a response's output, and the events of each: its beginning, deltas, its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from skynet.gateway.parsing.deltas import Delta, ToolCallDelta
from skynet.gateway.sse import Event


class Emit(Protocol):
    """Makes the next event of a stream."""

    def __call__(self, kind: str, **fields: Any) -> Event: ...


class OutputItem(Protocol):
    """An item that is being written."""

    item: dict[str, Any]

    def takes(self, delta: Delta) -> bool:
        """Whether a delta belongs to it."""

    def begin(self) -> Iterator[Event]: ...

    def add(self, delta: Delta, logprobs: list[dict[str, Any]]) -> Iterator[Event]: ...

    def end(self, status: str) -> Iterator[Event]:
        """Completes `item`. status: completed or incomplete."""


class TextItem:
    """A message, or reasoning, with one part of text."""

    def __init__(self, emit: Emit, place: int, run_id: str, *, is_reasoning: bool) -> None:
        self._emit = emit
        self._is_reasoning = is_reasoning
        self._type = "reasoning_text" if is_reasoning else "output_text"
        self._text = ""
        self._logprobs: list[dict[str, Any]] = []
        more: dict[str, Any] = {"type": "reasoning", "summary": []}
        if not is_reasoning:
            more = {"type": "message", "role": "assistant"}
        prefix = "rs" if is_reasoning else "msg"
        self.item = {
            "id": f"{prefix}_{run_id}_{place}",
            "status": "in_progress",
            "content": [],
            **more,
        }
        self._at = {"output_index": place}
        self._in = {"item_id": self.item["id"], "output_index": place, "content_index": 0}

    def takes(self, delta: Delta) -> bool:
        return delta.tool_call is None and bool(delta.reasoning) == self._is_reasoning

    def begin(self) -> Iterator[Event]:
        yield self._emit("response.output_item.added", **self._at, item=dict(self.item))
        yield self._emit("response.content_part.added", **self._in, part=self._part())

    def add(self, delta: Delta, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        text = delta.reasoning if self._is_reasoning else delta.content
        self._text += text
        more = {}
        if not self._is_reasoning:
            self._logprobs += logprobs
            more = {"logprobs": [_without_bytes(each) for each in logprobs]}
        yield self._emit(f"response.{self._type}.delta", **self._in, delta=text, **more)

    def end(self, status: str) -> Iterator[Event]:
        more = {}
        if not self._is_reasoning:
            more = {"logprobs": [_without_bytes(each) for each in self._logprobs]}
        yield self._emit(f"response.{self._type}.done", **self._in, text=self._text, **more)
        yield self._emit("response.content_part.done", **self._in, part=self._part())
        self.item = {**self.item, "status": status, "content": [self._part()]}
        yield self._emit("response.output_item.done", **self._at, item=self.item)

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._type, "text": self._text}
        if not self._is_reasoning:
            part |= {"annotations": [], "logprobs": list(self._logprobs)}
        return part


class CallItem:
    """A call of a function."""

    def __init__(self, emit: Emit, place: int, run_id: str, call: ToolCallDelta) -> None:
        self._emit = emit
        self._index = call.index
        self.item: dict[str, Any] = {
            "id": f"fc_{run_id}_{place}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call.id or f"call_{run_id}_{place}",
            "name": call.name,
            "arguments": "",
        }
        self._at = {"output_index": place}
        self._in = {"item_id": self.item["id"], "output_index": place}

    def takes(self, delta: Delta) -> bool:
        return delta.tool_call is not None and delta.tool_call.index == self._index

    def begin(self) -> Iterator[Event]:
        yield self._emit("response.output_item.added", **self._at, item=dict(self.item))

    def add(self, delta: Delta, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        fragment = delta.tool_call.arguments if delta.tool_call else ""
        if fragment:
            self.item["arguments"] += fragment
            kind = "response.function_call_arguments.delta"
            yield self._emit(kind, **self._in, delta=fragment)

    def end(self, status: str) -> Iterator[Event]:
        arguments = self.item["arguments"] or "{}"
        self.item |= {"arguments": arguments, "status": status}
        kind = "response.function_call_arguments.done"
        yield self._emit(kind, **self._in, arguments=arguments)
        yield self._emit("response.output_item.done", **self._at, item=dict(self.item))


def _without_bytes(entry: dict[str, Any]) -> dict[str, Any]:
    """A token's log-probability as events have it."""
    top = [{"token": each["token"], "logprob": each["logprob"]} for each in entry["top_logprobs"]]
    return {"token": entry["token"], "logprob": entry["logprob"], "top_logprobs": top}
