"""/v1/chat/completions: OpenAI's objects, whole and as chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from skynet import __version__
from skynet.gateway.chat import ChatAnswer, chat_pieces, whole_chat
from skynet.gateway.parsing.deltas import Delta
from skynet.gateway.run import Run
from skynet.gateway.sse import DONE, Event

FINGERPRINT = f"skynet_{__version__}"


async def chat_completion(run: Run) -> dict[str, Any]:
    """The whole answer."""
    answers = await whole_chat(run)
    return {
        "id": chat_id(run),
        "object": "chat.completion",
        "created": run.created,
        "model": run.model,
        "system_fingerprint": FINGERPRINT,
        "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
        "usage": run.usage.to_json(),
    }


async def chat_events(
    run: Run, include_usage: bool, continuous_usage: bool = False, after: str = ""
) -> AsyncGenerator[Event]:
    """The answer as chunks: the role, what comes, how it ended, the usage.

    An event's id is the position after it: sent as `Last-Event-ID` it continues the stream.
    """
    chunks = _Chunks(run, include_usage, continuous_usage)
    if not after:
        for index in range(len(run.generations)):
            yield chunks.of(index, {"role": "assistant", "content": ""})
    async with aclosing(chat_pieces(run, after)) as pieces:
        async for piece in pieces:
            if piece.deltas or piece.logprobs:
                # One chunk for a step, so that its id is a place between two chunks.
                position = "" if piece.finish_reason else piece.position
                delta = deltas_json(piece.deltas)
                yield chunks.of(piece.choice, delta, position, logprobs=piece.logprobs)
            if piece.finish_reason:
                yield chunks.of(piece.choice, {}, piece.position, reason=piece.finish_reason)
    if include_usage:
        yield chunks.usage()
    yield Event(DONE)


class _Chunks:
    """Makes the chunks of one stream, which all have the same id, time and model."""

    def __init__(self, run: Run, include_usage: bool, continuous_usage: bool) -> None:
        self._run = run
        self._continuous = continuous_usage
        self._usage: dict[str, Any] = {"usage": None} if include_usage else {}
        self._head = {
            "id": chat_id(run),
            "object": "chat.completion.chunk",
            "created": run.created,
            "model": run.model,
            "system_fingerprint": FINGERPRINT,
        }

    def of(
        self,
        index: int,
        delta: dict[str, Any],
        position: str = "",
        *,
        logprobs: list[dict[str, Any]] | None = None,
        reason: str | None = None,
    ) -> Event:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": reason,
        }
        usage = {"usage": self._run.usage.to_json()} if self._continuous else self._usage
        return Event({**self._head, "choices": [choice], **usage}, id=position)

    def usage(self) -> Event:
        return Event({**self._head, "choices": [], "usage": self._run.usage.to_json()})


def chat_id(run: Run) -> str:
    return f"chatcmpl-{run.id}"


def deltas_json(deltas: Sequence[Delta]) -> dict[str, Any]:
    """A step's deltas as one, without fields that it does not have: clients validate them."""
    shown: dict[str, Any] = {}
    if content := "".join(delta.content for delta in deltas):
        shown["content"] = content
    if reasoning := "".join(delta.reasoning for delta in deltas):
        # clients read one name or the other
        shown |= {"reasoning_content": reasoning, "reasoning": reasoning}
    fragments: dict[int, dict[str, Any]] = {}
    for call in filter(None, (delta.tool_call for delta in deltas)):
        empty = {"index": call.index, "function": {"arguments": ""}}
        fragment = fragments.setdefault(call.index, empty)
        if call.id:
            fragment |= {"id": call.id, "type": "function"}
        if call.name:
            fragment["function"]["name"] = call.name
        fragment["function"]["arguments"] += call.arguments
    if fragments:
        shown["tool_calls"] = list(fragments.values())
    return shown


def message_json(answer: ChatAnswer) -> dict[str, Any]:
    """A whole answer as a message."""
    content = None if answer.tool_calls and not answer.content else answer.content
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.reasoning:
        message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    return message


def _choice(index: int, answer: ChatAnswer) -> dict[str, Any]:
    logprobs = {"content": answer.logprobs, "refusal": None} if answer.logprobs else None
    return {
        "index": index,
        "message": message_json(answer),
        "logprobs": logprobs,
        "finish_reason": answer.finish_reason,
    }
