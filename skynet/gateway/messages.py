"""/v1/messages: Anthropic's messages, whole and as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json

from skynet.gateway.chat import ChatAnswer, ChatPiece, chat_pieces, whole_chat
from skynet.gateway.errors import MESSAGES_PATH, ApiError
from skynet.gateway.parsing.deltas import Delta, ToolCallDelta
from skynet.gateway.run import Run
from skynet.gateway.sse import Event

KIND = "message"
REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


async def message(run: Run) -> dict[str, Any]:
    """The whole answer."""
    answer = (await whole_chat(run))[0]
    return {
        **_head(run),
        "content": _content(answer),
        **_stop(answer.finish_reason, answer.stop),
        "usage": _usage(run),
    }


async def message_events(run: Run) -> AsyncGenerator[Event]:
    """The answer as events: the message without content, its blocks, how it ended."""
    start = {**_head(run), "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**start, "usage": _usage(run)})
    yield _event("ping")
    blocks = _Blocks(run.id)
    async with aclosing(chat_pieces(run)) as pieces:
        async for piece in pieces:
            for event in blocks.take(piece):
                yield event
            if piece.finish_reason:
                for event in blocks.close():
                    yield event
                stop = _stop(piece.finish_reason, piece.stop)
                yield _event("message_delta", delta=stop, usage=_usage(run))
    yield _event("message_stop")


def message_failed(error: ApiError) -> list[Event]:
    """The last event, after an error in mid-stream."""
    return [Event(error.body(MESSAGES_PATH), "error")]


class _Blocks:
    """Content blocks of a stream; one is open at a time."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._number = -1  # of the block that is open, or was last
        self._kind: tuple[str, int] | None = None  # of the open one

    def take(self, piece: ChatPiece) -> Iterator[Event]:
        for delta in piece.deltas:
            kind, fragment = _kind(delta), _fragment(delta)
            if kind != self._kind:
                yield from self.close()
                self._number, self._kind = self._number + 1, kind
                block = self._block(delta)
                yield _event("content_block_start", index=self._number, content_block=block)
            if fragment is not None:
                yield _event("content_block_delta", index=self._number, delta=fragment)

    def close(self) -> Iterator[Event]:
        if self._kind is not None:
            self._kind = None
            yield _event("content_block_stop", index=self._number)

    def _block(self, delta: Delta) -> dict[str, Any]:
        if (call := delta.tool_call) is not None:
            call_id = call.id or f"toolu_{self._run_id}_{call.index}"
            return {"type": "tool_use", "id": call_id, "name": call.name, "input": {}}
        if delta.reasoning:
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}


def _kind(delta: Delta) -> tuple[str, int]:
    if delta.tool_call is not None:
        return "tool_use", delta.tool_call.index
    return ("thinking" if delta.reasoning else "text"), 0


def _fragment(delta: Delta) -> dict[str, Any] | None:
    """What a delta adds to its block; None: the block only begins."""
    if isinstance(call := delta.tool_call, ToolCallDelta):
        fragment = {"type": "input_json_delta", "partial_json": call.arguments}
        return fragment if call.arguments else None
    if delta.reasoning:
        return {"type": "thinking_delta", "thinking": delta.reasoning}
    return {"type": "text_delta", "text": delta.content}


def _content(answer: ChatAnswer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
    if answer.content:
        blocks.append({"type": "text", "text": answer.content})
    return blocks + [_call(call) for call in answer.tool_calls]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": call["id"],
        "name": function["name"],
        "input": _input(function["arguments"]),
    }


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; of a call that was cut off, those that it has."""
    try:
        parsed = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": arguments}


def _head(run: Run) -> dict[str, Any]:
    return {"id": f"msg_{run.id}", "type": "message", "role": "assistant", "model": run.model}


def _stop(finish_reason: str, stop: str) -> dict[str, Any]:
    """`stop_sequence` is there always: clients read it."""
    if finish_reason == "stop" and stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": REASONS.get(finish_reason, "end_turn"), "stop_sequence": None}


def _usage(run: Run) -> dict[str, Any]:
    """Cached tokens, which are known at the end, are counted apart."""
    usage = run.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)
