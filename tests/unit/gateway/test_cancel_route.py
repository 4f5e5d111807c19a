"""/v1/cancel."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from gateway_fakes import FakeClient, call, decoder, fake_app

from skynet.gateway.config import GatewayConfig
from skynet.gateway.keys import Keys

KEYS = {"me": "sk-mine-00", "other": "sk-other-0", "admin": "sk-admin-0"}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chatcmpl-": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "n": 2},
    ),
    "cmpl-": ("/v1/completions", {"prompt": "Hi"}),
    "resp_": ("/v1/responses", {"input": "Hi"}),
    "msg_": ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}),
}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


@pytest.mark.parametrize("prefix", BODIES)
def test_an_answer_is_cancelled_by_who_asked_for_it(prefix: str) -> None:
    # Given an answer that does not go on
    client = FakeClient(decoder())
    client.hold_at = 1
    keys = Keys({KEYS["me"]: "me", KEYS["other"]: "other"}, {KEYS["admin"]: "admin"})
    app = fake_app(client, GatewayConfig(keys=keys))
    path, body = BODIES[prefix]

    async def run() -> tuple[httpx2.Response, list[httpx2.Response]]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://made") as http:
            asked = asyncio.create_task(http.post(path, json=body, headers=bearer("me")))
            await asyncio.wait_for(client.held.wait(), 30)
            cancel = f"/v1/cancel/{prefix}{next(iter(client.records))}"
            # When somebody else cancels it, then who asked for it, twice
            answers = [
                await http.post(cancel, headers=bearer(name)) for name in ("other", "me", "admin")
            ]
            return await asyncio.wait_for(asked, 30), answers

    ended, (others, mine, again) = asyncio.run(run())
    # Then only the latter is heard, all choices end, and the waiting client is told
    assert (others.status_code, others.json()["error"]["code"]) == (404, "answer_not_found")
    assert mine.json()["cancelled"] is True
    assert again.json()["cancelled"] is False
    assert client.cancelled == set(client.records)
    assert ended.status_code == 499
    assert "was cancelled" in ended.json()["error"]["message"]


def test_an_unknown_answer() -> None:
    for name in ("nonsense", "msg_00000000-0000-0000-0000-000000000000"):
        response = call(fake_app(FakeClient(decoder())), "POST", f"/v1/cancel/{name}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "answer_not_found")
