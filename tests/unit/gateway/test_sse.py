"""Server-sent events: framing, comments, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from skynet.gateway.sse import Event, comment, with_comments

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(TEXT, st.sampled_from(["", "message_start"]), st.integers(0, 9))))
def test_any_text_arrives_as_it_was_sent(pieces: list[tuple[str, str, int]]) -> None:
    # Given
    events = [Event({"text": text}, name, str(number)) for text, name, number in pieces]
    # When OpenAI's client reads their bytes
    stream = b"".join(event.encode() + comment("keep-alive") for event in events)
    read = list(SSEDecoder().iter_bytes(iter([stream])))
    # Then
    assert [json.loads(each.data)["text"] for each in read] == [text for text, _, _ in pieces]
    assert [each.event or "" for each in read] == [name for _, name, _ in pieces]
    assert [each.id for each in read] == [str(number) for _, _, number in pieces]


@given(TEXT, st.lists(st.integers(0, 200), max_size=5))
def test_bytes_that_arrive_in_pieces_are_the_same_event(text: str, cuts: list[int]) -> None:
    stream = Event({"text": text}).encode()
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(places)]
    (read,) = SSEDecoder().iter_bytes(iter(pieces))
    assert json.loads(read.data) == {"text": text}


def test_a_silent_stream_has_comments_from_its_first_moment() -> None:
    # Given a stream whose event comes when it is let go
    go = asyncio.Event()

    async def events() -> AsyncGenerator[Event]:
        await go.wait()
        yield Event({"text": "late"})

    async def describe() -> str:
        go.set()
        return "recovering: waiting for stage0.shard1"

    async def read() -> list[bytes]:
        return [piece async for piece in with_comments(events(), 0.01, describe)]

    # When
    pieces = asyncio.run(read())
    # Then
    assert pieces[0] == b": ok\n"
    assert b": recovering: waiting for stage0.shard1\n" in pieces
    assert pieces[-1] == b'data: {"text": "late"}\n\n'


@pytest.mark.parametrize("is_waiting", [True, False])
def test_the_events_are_closed_when_the_client_leaves(is_waiting: bool) -> None:
    # Given
    closed = []

    async def events() -> AsyncGenerator[Event]:
        try:
            yield Event({"n": 1})
            await asyncio.sleep(60)
            yield Event({"n": 2})
        finally:
            closed.append(True)

    async def describe() -> str:
        return "keep-alive"

    async def read() -> None:
        stream = with_comments(events(), 0.01, describe)
        for _ in range(4 if is_waiting else 2):
            await anext(stream)
        await stream.aclose()

    # When
    asyncio.run(read())
    # Then
    assert closed == [True]
