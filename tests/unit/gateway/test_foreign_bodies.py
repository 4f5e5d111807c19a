"""Bodies of any JSON: a chat, or an error that names what is wrong; never another exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gateway_fakes import FakeClient, decoder, fake_app, post
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from skynet.gateway.errors import ApiError
from skynet.gateway.responses import echo_of
from skynet.gateway.schemas.generation import PASSED
from skynet.gateway.schemas.messages import MessagesBody
from skynet.gateway.schemas.responses import ResponsesBody

WORDS = st.sampled_from(
    [
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "input_text",
        "output_text",
        "text",
        "image",
        "tool_use",
        "tool_result",
        "thinking",
        "user",
        "assistant",
        "system",
        "developer",
        "function",
        "allowed_tools",
        "auto",
        "any",
        "required",
        "json_schema",
        "json_object",
        "enabled",
        "x",
    ]
)
NAMES = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "name",
        "arguments",
        "call_id",
        "output",
        "summary",
        "id",
        "input",
        "tool_use_id",
        "tools",
        "mode",
        "thinking",
        "format",
        "schema",
        "effort",
        "parameters",
        "input_schema",
        "description",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def bodies(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=6)


def check(checked: ResponsesBody | MessagesBody, also: Callable[[Any], Any]) -> None:
    """The body is a chat whose messages have texts, or refused with the name of a field."""
    refused = None
    try:
        chat = checked.chat(PASSED)
        checked.ignored(PASSED)
        also(checked)
    except ApiError as error:
        refused = error
    if refused is None:
        assert all(isinstance(message["content"], str) for message in chat.messages)
    else:
        assert refused.status == 400
        assert refused.param


@settings(max_examples=100)
@given(
    body=bodies(*ResponsesBody.model_fields, "background", "seed", "stop"),
    items=st.lists(st.dictionaries(NAMES, VALUES, max_size=5), max_size=4),
)
def test_responses(body: dict[str, Any], items: list[Any]) -> None:
    try:
        checked = ResponsesBody.model_validate({"input": items, **body})
    except ValidationError:
        return
    check(checked, echo_of)


@settings(max_examples=100)
@given(
    body=bodies(*MessagesBody.model_fields, "container", "seed"),
    items=st.lists(st.dictionaries(NAMES, VALUES, max_size=5), min_size=1, max_size=4),
)
def test_messages(body: dict[str, Any], items: list[Any]) -> None:
    try:
        checked = MessagesBody.model_validate({"messages": items, "max_tokens": 9, **body})
    except ValidationError:
        return
    check(checked, str)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", '{"input": "Hi", "metadata": {"a": "\\ud800"}}', "metadata"),
        ("/v1/responses", '{"input": "Hi", "metadata": {"a": NaN}}', "metadata"),
        ("/v1/responses", '{"input": "\\ud800"}', "prompt"),
        ("/v1/rerank", '{"query": "\\ud800", "documents": ["x"]}', "model"),
        ("/v1/embeddings", "[" * 100_000, None),
        ("/v1/messages", b'{"max_tokens": 1, "messages": [{"role": "user\xff"}]}', None),
    ],
)
def test_texts_that_are_none(path: str, body: str | bytes, param: str | None) -> None:
    response = post(fake_app(FakeClient(decoder())), path, body)
    assert response.status_code == 400, response.text
    assert response.json()["error"].get("param") == param
