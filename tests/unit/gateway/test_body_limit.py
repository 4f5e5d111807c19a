"""Bodies are bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from skynet.gateway.middleware.body_limit import BodyLimit


def sent(
    pieces: list[bytes], *, headers: dict[str, str] | None = None, pause_s: float = 0, **limits: Any
) -> tuple[int, Any]:
    """The status and the body of the answer to a body that comes in these pieces."""
    messages: list[dict[str, Any]] = []
    left = list(pieces)

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(size).encode()})

    async def receive() -> dict[str, Any]:
        if pause_s:
            await asyncio.sleep(pause_s)
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message: Any) -> None:
        messages.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "path": limits.pop("path", "/"), "headers": raw}
    limit = BodyLimit(app, limits.get("max_bytes", 10), limits.get("timeout_s", 5), {"/long": 100})
    asyncio.run(limit(scope, receive, send))
    return messages[0]["status"], json.loads(messages[1]["body"])


def test_a_body_up_to_the_limit_passes() -> None:
    assert sent([b"12345", b"67890"]) == (200, 10)
    assert sent([b"x" * 100], path="/long") == (200, 100)


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([b"12345", b"678901"], {}),
        ([b""], {"content-length": "11"}),
        ([b""], {"content-length": "-1"}),
        ([b""], {"content-length": "9" * 400}),
        ([b""], {"content-length": "1e3"}),
    ],
)
def test_a_longer_body_is_refused(pieces: list[bytes], headers: dict[str, str]) -> None:
    status, body = sent(pieces, headers=headers)
    assert status == 413
    assert body["error"]["code"] == "request_too_large"


def test_a_body_that_does_not_come_is_refused() -> None:
    status, body = sent([b"1", b"2"], pause_s=0.2, timeout_s=0.05)
    assert status == 408
    assert body["error"]["code"] == "slow_body"
