"""/v1/responses: OpenAI's response objects, and the events that build them.

Nothing here is by chance or by the clock: events of an answer that is read again are the same, so
that a stream continues after any of them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from skynet.gateway.chat import ChatPiece, chat_pieces
from skynet.gateway.errors import ApiError
from skynet.gateway.parsing.deltas import Delta
from skynet.gateway.response_items import CallItem, OutputItem, TextItem
from skynet.gateway.run import Run
from skynet.gateway.schemas.body import refuse
from skynet.gateway.schemas.responses import ResponsesBody
from skynet.gateway.schemas.structure import ResponseFormat
from skynet.gateway.sse import Event

KIND = "response"
MAX_KEPT = 16_000  # characters of JSON that are kept for a client that comes back
LONG = ("instructions", "tools", "text")


def echo_of(body: ResponsesBody) -> dict[str, Any]:
    """What a response repeats of its request.

    Raises:
        ApiError: 400, it cannot be sent back.
    """
    effort = body.reasoning.effort if body.reasoning else None
    form = body.text.format if body.text else None
    echo = {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": effort, "summary": None},
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": _dumped(form) if form else {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.functions()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
    }
    try:
        json.dumps(echo, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # a lone surrogate, from "\\ud800" in JSON, or NaN
        raise refuse("metadata", f"cannot be sent back: {error}", "invalid_value") from None
    return echo


def _dumped(form: ResponseFormat) -> dict[str, Any]:
    return form.model_dump(exclude_none=True, by_alias=True)


def kept(echo: dict[str, Any]) -> dict[str, Any]:
    """The part of it that is kept with the request: without long instructions, tools, schemas."""
    if len(json.dumps(echo)) <= MAX_KEPT:
        return echo
    short = {name: value for name, value in echo.items() if name not in LONG}
    return short if len(json.dumps(short)) <= MAX_KEPT else {}


NO_ECHO = echo_of(ResponsesBody())


class ResponseWriter:
    """Writes one response.

    echo: what it repeats of the request; None: what was kept with it.
    """

    def __init__(self, echo: dict[str, Any] | None = None) -> None:
        self._echo = echo
        self._number = 0  # of the next event
        self._run: Run | None = None
        self._items: list[dict[str, Any]] = []  # that are done
        self._open: OutputItem | None = None
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text comes later

    async def whole(self, run: Run) -> dict[str, Any]:
        """The whole response."""
        last: dict[str, Any] = {}
        async with aclosing(self.events(run)) as events:
            async for event in events:
                last = event.data if isinstance(event.data, dict) else {}
        response: dict[str, Any] = last["response"]
        return response

    async def events(self, run: Run, after: int = -1) -> AsyncGenerator[Event]:
        """The events, those after a sequence number."""
        self._run = run
        async with aclosing(self._all(run)) as events:
            async for event in events:
                if int(event.id) > after:
                    yield event

    def failed(self, error: ApiError) -> list[Event]:
        """The last event, after an error in mid-stream."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        response = self._response("failed")
        response["error"] = {"code": code, "message": error.message}
        return [self._emit("response.failed", response=response)]

    async def _all(self, run: Run) -> AsyncGenerator[Event]:
        yield self._emit("response.created", response=self._response("in_progress"))
        yield self._emit("response.in_progress", response=self._response("in_progress"))
        async with aclosing(chat_pieces(run)) as pieces:
            async for piece in pieces:
                for event in self._take(piece):
                    yield event
                if piece.finish_reason:
                    for event in self._finish(piece.finish_reason):
                        yield event

    def _take(self, piece: ChatPiece) -> Iterator[Event]:
        self._logprobs += piece.logprobs
        for delta in piece.deltas:
            if self._open is None or not self._open.takes(delta):
                yield from self._close("completed")
                self._open = self._opened(delta)
                yield from self._open.begin()
            logprobs, self._logprobs = self._logprobs, []
            yield from self._open.add(delta, logprobs)

    def _opened(self, delta: Delta) -> OutputItem:
        emit, place, run_id = self._emit, len(self._items), self._of().id
        if delta.tool_call is not None:
            return CallItem(emit, place, run_id, delta.tool_call)
        return TextItem(emit, place, run_id, is_reasoning=bool(delta.reasoning))

    def _close(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self._items.append(self._open.item)
            self._open = None

    def _finish(self, reason: str) -> Iterator[Event]:
        status = "incomplete" if reason == "length" else "completed"
        yield from self._close(status)
        response = self._response(status)
        if status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["usage"] = self._usage()
        yield self._emit(f"response.{status}", response=response)

    def _emit(self, kind: str, **fields: Any) -> Event:
        number, self._number = self._number, self._number + 1
        return Event({"type": kind, "sequence_number": number, **fields}, kind, str(number))

    def _of(self) -> Run:
        if self._run is None:
            raise RuntimeError("events come first")
        return self._run

    def _response(self, status: str) -> dict[str, Any]:
        run = self._of()
        echo = run.about.get("echo", {}) if self._echo is None else self._echo
        return {
            "id": f"resp_{run.id}",
            "object": "response",
            "created_at": run.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": run.model,
            "output": list(self._items),
            "previous_response_id": None,
            "service_tier": "default",
            "truncation": "disabled",
            "usage": None,
            **NO_ECHO,
            **echo,
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._of().usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": usage.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
