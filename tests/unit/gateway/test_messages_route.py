"""/v1/messages: Anthropic's conversations to chats, and answers to its messages and events."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from gateway_fakes import (
    HELLO,
    Chats,
    FakeClient,
    call,
    decoder,
    events_of,
    fake_app,
    leave,
    pieces_of,
    post,
    strictly,
)
from pydantic import TypeAdapter

from skynet.errors import ShardFailed
from skynet.gateway.config import GatewayConfig
from skynet.gateway.keys import Keys
from skynet.gateway.parsing.deltas import Delta, ToolCallDelta

PATH = "/v1/messages"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object"}}
# As Claude Code sends it.
CLAUDE_CODE = {
    "model": "made",
    "max_tokens": 32000,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.328; cch=1a2b3;"},
        {
            "type": "text",
            "text": "You are Claude Code.",
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "list the files"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I need a shell.", "signature": ""},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "ls"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "a.py"}],
                    "is_error": False,
                },
                {"type": "text", "text": "and now?", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {"role": "system", "content": "The user has opened a.py."},
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Runs a command.",
            "input_schema": {
                "type": "object",
                "properties": {"command": {"type": "string"}},
                "required": ["command"],
            },
        }
    ],
    "metadata": {"user_id": "user_1"},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(decoder())


def checked(events: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The events' data; of Anthropic's types, where its package is installed."""
    for name, data in events:
        assert name == data["type"]
    try:
        from anthropic.types import RawMessageStreamEvent
    except ImportError:
        return [data for _, data in events]
    adapter: Any = TypeAdapter(RawMessageStreamEvent)
    for _, data in events:
        if data["type"] not in ("ping", "error"):
            strictly(type(adapter.validate_python(data, strict=True)), data)
    return [data for _, data in events]


def whole(data: dict[str, Any]) -> dict[str, Any]:
    try:
        from anthropic.types import Message
    except ImportError:
        return data
    strictly(Message, data)
    return data


def test_a_whole_message(client: FakeClient) -> None:
    body = {"model": "made", "max_tokens": 999, "system": "Be brief.", "messages": HI}
    response = post(
        fake_app(client),
        f"{PATH}?beta=true",
        body,
        **{"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"},
    )
    record = next(iter(client.records.values()))
    prompt = client.model.text.decode(record.prompt, False)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    answer = whole(response.json())
    tokens = answer["usage"].pop("output_tokens")
    assert tokens > 5
    assert answer == {
        "id": f"msg_{record.id}",
        "type": "message",
        "role": "assistant",
        "model": "made",
        "content": [{"type": "text", "text": HELLO}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(record.prompt) - 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2,
        },
    }
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert "x-skynet-ignored" not in response.headers


def test_events_in_their_order(client: FakeClient) -> None:
    body = {"max_tokens": 99, "messages": HI, "stream": True}
    data = checked(events_of(post(fake_app(client), PATH, body)))
    kinds = [each["type"] for each in data]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert data[0]["message"]["usage"]["input_tokens"] > 0
    assert data[0]["message"]["stop_sequence"] is None
    text = [each["delta"]["text"] for each in data if each["type"] == "content_block_delta"]
    assert "".join(text) == HELLO
    assert data[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert data[-2]["usage"]["output_tokens"] > deltas


@pytest.mark.parametrize(
    ("fields", "reason", "stop", "text"),
    [
        ({"max_tokens": 3}, "max_tokens", None, None),
        ({"stop_sequences": ["zzz", "are you"]}, "stop_sequence", "are you", "Hello world, how "),
        ({"stop_sequences": ["zzz"]}, "end_turn", None, HELLO),
    ],
)
@pytest.mark.parametrize("streams", [False, True])
def test_why_an_answer_ends(
    client: FakeClient,
    fields: dict[str, Any],
    reason: str,
    stop: str | None,
    text: str | None,
    streams: bool,
) -> None:
    body = {"max_tokens": 99, "messages": HI, "stream": streams, **fields}
    response = post(fake_app(client), PATH, body)
    if streams:
        data = checked(events_of(response))
        ended = data[-2]["delta"]
        pieces = [each["delta"]["text"] for each in data if each["type"] == "content_block_delta"]
        written = "".join(pieces)
    else:
        ended = whole(response.json())
        written = ended["content"][0]["text"]
    assert (ended["stop_reason"], ended["stop_sequence"]) == (reason, stop)
    assert written == text if text is not None else HELLO.startswith(written)


MADE = (
    Delta(reasoning="Let me see."),
    Delta(content="Looking."),
    Delta(tool_call=ToolCallDelta(0, "call_a", "weather", "")),
    Delta(tool_call=ToolCallDelta(0, arguments='{"city":')),
    Delta(tool_call=ToolCallDelta(0, arguments='"Rome"}')),
    Delta(tool_call=ToolCallDelta(1, "call_b", "weather", "")),
)


def test_thoughts_and_calls_are_blocks(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    chats, made = Chats(monkeypatch), pieces_of(*MADE, reason="tool_calls")
    for module in ("messages", "chat"):
        monkeypatch.setattr(f"skynet.gateway.{module}.chat_pieces", made)
    body = {"max_tokens": 99, "messages": HI, "tools": [TOOL]}
    answer = whole(post(fake_app(client), PATH, body).json())
    assert answer["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "Looking."},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "call_b", "name": "weather", "input": {}},
    ]
    assert answer["stop_reason"] == "tool_use"
    data = checked(events_of(post(fake_app(client), PATH, {**body, "stream": True})))
    starts = [each["content_block"] for each in data if each["type"] == "content_block_start"]
    assert [each["type"] for each in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert starts[2] == {"type": "tool_use", "id": "call_a", "name": "weather", "input": {}}
    deltas = [(e["index"], e["delta"]) for e in data if e["type"] == "content_block_delta"]
    assert deltas == [
        (0, {"type": "thinking_delta", "thinking": "Let me see."}),
        (1, {"type": "text_delta", "text": "Looking."}),
        (2, {"type": "input_json_delta", "partial_json": '{"city":'}),
        (2, {"type": "input_json_delta", "partial_json": '"Rome"}'}),
    ]
    stops = [each["index"] for each in data if each["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    assert data[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert chats.last.tools == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {"type": "object"},
                "description": "of a city",
            },
        }
    ]


def test_a_call_that_is_cut_has_the_arguments_so_far(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = Delta(tool_call=ToolCallDelta(0, "a", "weather", '{"city": "Rome", "days": [1'))
    monkeypatch.setattr("skynet.gateway.chat.chat_pieces", pieces_of(cut, reason="length"))
    answer = whole(post(fake_app(client), PATH, {"max_tokens": 9, "messages": HI}).json())
    assert answer["content"][0]["input"] == {"city": "Rome", "days": [1]}
    assert answer["stop_reason"] == "max_tokens"


def test_claude_code_is_understood(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = Chats(monkeypatch)
    response = post(fake_app(client), f"{PATH}?beta=true", CLAUDE_CODE)
    assert checked(events_of(response))[-1] == {"type": "message_stop"}
    assert "x-skynet-ignored" not in response.headers
    chat = chats.last
    assert chat.messages == [
        {"role": "system", "content": "You are Claude Code.\nBe brief."},
        {"role": "user", "content": "list the files"},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "I need a shell.",
            "tool_calls": [
                {
                    "id": "toolu_1",
                    "type": "function",
                    "function": {"name": "Bash", "arguments": '{"command": "ls"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "toolu_1", "content": "a.py"},
        {"role": "user", "content": "and now?"},
        {"role": "system", "content": "The user has opened a.py."},
    ]
    assert chat.chat_template_kwargs == {"enable_thinking": True}
    assert chat.reasoning_effort == "medium"


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        (
            {"type": "tool", "name": "weather"},
            {"type": "function", "function": {"name": "weather"}},
            None,
        ),
    ],
)
def test_choices_of_tools(
    client: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
    choice: dict[str, Any],
    expected: Any,
    parallel: bool | None,
) -> None:
    chats = Chats(monkeypatch)
    body = {"max_tokens": 9, "messages": HI, "tools": [TOOL], "tool_choice": choice}
    assert post(fake_app(client), PATH, body).status_code == 200
    assert (chats.last.tool_choice, chats.last.parallel_tool_calls) == (expected, parallel)


def test_the_beginning_of_an_answer_is_continued(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = Chats(monkeypatch)
    body = {"max_tokens": 9, "messages": [*HI, {"role": "assistant", "content": "{"}]}
    assert post(fake_app(client), PATH, body).status_code == 200
    assert (chats.last.continue_final_message, chats.last.add_generation_prompt) == (True, False)


def test_tokens_are_counted(client: FakeClient) -> None:
    app, body = fake_app(client), {"messages": HI, "system": "Be brief."}
    counted = post(app, f"{PATH}/count_tokens?beta=true", body)
    assert not client.records
    post(app, PATH, {**body, "max_tokens": 1})
    record = next(iter(client.records.values()))
    assert counted.json() == {"input_tokens": len(record.prompt)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"stop_sequences": [""]}, "stop"),
        ({"model": "claude-opus"}, "there is made"),
    ],
)
def test_what_is_refused_has_the_form_of_anthropic(
    client: FakeClient, fields: dict[str, Any], words: str
) -> None:
    response = post(fake_app(client), PATH, {"max_tokens": 9, "messages": HI, **fields})
    kind, status = ("invalid_request_error", 400)
    if "model" in fields:
        kind, status = ("not_found_error", 404)
    assert response.status_code == status, response.text
    answer = response.json()
    assert (answer["type"], answer["error"]["type"]) == ("error", kind)
    assert words in answer["error"]["message"]
    assert not client.records


def test_an_error_in_mid_stream_is_an_event() -> None:
    client = FakeClient(decoder(), lambda _: ShardFailed("shard 1: broken"))
    body = {"max_tokens": 9, "messages": HI, "stream": True}
    data = checked(events_of(post(fake_app(client), PATH, body)))
    assert data[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "shard 1: broken"},
    }


def test_keys_as_anthropic_sends_them(client: FakeClient) -> None:
    config = GatewayConfig(keys=Keys({"sk-made-1": "me"}, {}))
    app, body = fake_app(client, config), {"max_tokens": 9, "messages": HI}
    refused = post(app, PATH, body)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert post(app, PATH, body, **{"x-api-key": "sk-made-1"}).status_code == 200


def test_claude_code_asks_whether_the_server_is_there(client: FakeClient) -> None:
    assert call(fake_app(client), "HEAD", "/").status_code == 200


@pytest.mark.parametrize("streams", [False, True])
def test_a_message_of_a_client_that_left_is_cancelled(client: FakeClient, streams: bool) -> None:
    client.hold_at = 2
    body = {"max_tokens": 99, "messages": HI, "stream": streams}
    asyncio.run(leave(fake_app(client), PATH, body, client))
    assert len(client.records) == 1
    assert client.cancelled == set(client.records)
