"""The OpenAPI document is true: whatever is sent, nothing fails and answers are as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from fastapi import FastAPI
from gateway_fakes import FakeClient, decoder, fake_app
from openapi_cases import send_cases, with_messages

from skynet.gateway.config import GatewayConfig
from skynet.gateway.keys import Keys

KEY = {"authorization": "Bearer user-key-0001"}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    keys = Keys({"user-key-0001": "user"}, {})
    return fake_app(FakeClient(decoder()), GatewayConfig(keys=keys, batch_dir=tmp_path))


def test_any_request_is_answered_as_described(app: FastAPI) -> None:
    # Given all paths but those of the page, which read from Redis
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=KEY)
    # When / Then
    assert send_cases(schema.exclude(path_regex="^/cluster/"), KEY, max_examples=8) > 20


def test_options_of_a_chat_are_taken_or_refused(app: FastAPI) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=KEY)
    chats = schema.include(path="/v1/chat/completions", method="POST")
    assert send_cases(chats, KEY, 40, with_messages) == 1


def test_errors_are_described_as_they_are(app: FastAPI) -> None:
    document = app.openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert {"4XX", "5XX"} <= operation["responses"].keys()
    chats = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(chats) == {"application/json", "text/event-stream"}
