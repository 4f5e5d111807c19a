"""Takes one answer apart while it is generated."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers.utils.chat_parsing import ResponseParser

from skynet.gateway.parsing.deltas import Delta, ToolCallDelta
from skynet.gateway.parsing.regions import END, REASONING_NAMES, TOOL_CALLS, Regions, region_text
from skynet.gateway.parsing.text_channel import TextChannel

ID_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"
ID_LENGTH = 9  # the templates of Mistral refuse others


class ChatParser:
    """The parser of one answer.

    The same text gives the same message in whatever pieces it is fed. A call is streamed when it is
    complete: what turns out not to be one is content.
    """

    def __init__(
        self,
        regions: Regions,
        prompt_text: str,
        tools: Sequence[Mapping[str, Any]],
        special_tokens: Iterable[str] = (),
    ) -> None:
        """
        Args:
            prompt_text: the prompt with its special tokens: it may have begun the answer.
            tools: those of the request; without any, calls are content.
        """
        self._regions, self._tools = regions, tools
        self._prompt = hashlib.blake2b(prompt_text.encode(errors="replace")).digest()
        self._num_calls = 0
        special = (*special_tokens, END)
        self._content, self._reasoning = TextChannel(special), TextChannel(special)
        self._parser = ResponseParser(regions.cutting, prefix=regions.prefix(prompt_text))
        self.in_reasoning = False
        self._deltas(self._parser.initial_events)  # part of the prompt, not of the answer

    def feed(self, text: str) -> list[Delta]:
        """The pieces of the message that are certain after more text, with special tokens."""
        return self._deltas(self._parser.feed(text))

    def finish(self) -> list[Delta]:
        """The last pieces: the answer has ended."""
        events = self._parser.feed(END)
        _, last = self._parser.finalize()
        return [*self._deltas([*events, *last]), *self._end_of_text()]

    def _deltas(self, events: Iterable[Mapping[str, Any]]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            field, kind = event["field"], event["type"]
            if field in REASONING_NAMES:
                self.in_reasoning = kind != "region_close"
            if field == TOOL_CALLS:
                if kind == "region_close":
                    deltas += self._calls(region_text(event["value"]))
            elif kind == "region_chunk":
                deltas += self._text(field, event["text"])
            elif kind == "region_close":
                deltas += self._text(field, None)
        return deltas

    def _text(self, field: str, text: str | None) -> list[Delta]:
        """Text of a region, or None for its end. A field of another name is content."""
        is_reasoning = field in REASONING_NAMES
        channel = self._reasoning if is_reasoning else self._content
        shown = channel.close() if text is None else channel.push(text)
        if not shown:
            return []
        return [Delta(reasoning=shown) if is_reasoning else Delta(content=shown)]

    def _end_of_text(self) -> list[Delta]:
        return [*self._text("reasoning", None), *self._text("content", None)]

    def _calls(self, text: str) -> list[Delta]:
        calls = self._regions.calls(text, self._tools) if self._tools else None
        if calls is None:
            return [*self._text("content", text), *self._text("content", None)]
        deltas = []
        for name, arguments in calls:
            index = self._num_calls
            self._num_calls += 1
            deltas.append(Delta(tool_call=ToolCallDelta(index, self._id(index), name)))
            deltas.append(Delta(tool_call=ToolCallDelta(index, arguments=arguments)))
        return deltas

    def _id(self, index: int) -> str:
        """Of prompt and index: another gateway that takes the stream up gives the same."""
        digest = hashlib.blake2b(index.to_bytes(4, "big"), key=self._prompt[:32]).digest()
        number, characters = int.from_bytes(digest[:16], "big"), ""
        for _ in range(ID_LENGTH):
            number, digit = divmod(number, len(ID_CHARACTERS))
            characters += ID_CHARACTERS[digit]
        return characters
