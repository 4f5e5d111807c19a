"""A client that leaves before its stream has begun leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_fakes import FakeClient, decoder, fake_app, leave
from starlette.types import Receive, Scope, Send

from skynet.gateway.sse import EventStream

STREAM = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}


def test_a_stream_that_never_began_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a client that leaves when its request is submitted, before the response begins
    client = FakeClient(decoder())
    client.hold_at = 0
    app = fake_app(client)
    respond = EventStream.__call__

    async def late(self: Any, scope: Scope, receive: Receive, send: Send) -> None:
        client.held.set()  # `leave` closes the connection
        await respond(self, scope, receive, send)

    monkeypatch.setattr(EventStream, "__call__", late)
    # When
    asyncio.run(leave(app, "/v1/chat/completions", STREAM, client))
    # Then its request is cancelled, and the gateway does not wait for its answer
    assert client.records
    assert client.cancelled == set(client.records)
    assert app.state.gateway.open_answers == 0
