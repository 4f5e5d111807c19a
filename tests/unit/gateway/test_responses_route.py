"""/v1/responses: a conversation to a chat, its answer to a response and to events."""

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
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from skynet.errors import ShardFailed
from skynet.gateway.parsing.deltas import Delta, ToolCallDelta

PATH = "/v1/responses"
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
# The twelve fields that Codex sends, with tools that only OpenAI runs.
CODEX = {
    "model": "made",
    "instructions": "You are a coding agent.",
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "<permissions>read only</permissions>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "<environment>/src</environment>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "list the files"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "I need a shell."}],
            "content": None,
            "encrypted_content": None,
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "name": "shell",
            "arguments": '{"command":["ls"]}',
            "call_id": "call_1",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
    ],
    "tools": [
        {
            "type": "function",
            "name": "shell",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {
                "type": "object",
                "properties": {"command": {"type": "array", "items": {"type": "string"}}},
            },
        },
        {"type": "web_search", "external_web_access": False},
        {"type": "namespace", "name": "mcp", "tools": []},
        {"type": "image_generation", "output_format": "png"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0197",
    "client_metadata": {"session": "0197"},
}


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(decoder())


def checked(events: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """The events' data, each validated as OpenAI's type, with its name and its number."""
    adapter: Any = TypeAdapter(ResponseStreamEvent)
    for number, (name, data) in enumerate(events):
        event = adapter.validate_python(data, strict=True)
        strictly(type(event), data)
        assert (name, data["sequence_number"]) == (data["type"], number)
    return [data for _, data in events]


def test_a_whole_response(client: FakeClient) -> None:
    body = {"model": "made", "input": "Say hello", "metadata": {"a": "b"}, "store": True}
    response = post(fake_app(client), PATH, body)
    answer = strictly(Response, response.json())
    assert (answer.status, answer.output_text, answer.metadata) == ("completed", HELLO, {"a": "b"})
    record = next(iter(client.records.values()))
    assert answer.id == f"resp_{record.id}"
    assert answer.usage.input_tokens == len(record.prompt)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    prompt = client.model.text.decode(record.prompt, False)
    assert prompt == "<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\n"
    assert record.options.max_tokens == 256 - len(record.prompt)
    assert "x-skynet-ignored" not in response.headers


def test_events_of_a_text_in_their_order(client: FakeClient) -> None:
    data = checked(events_of(post(fake_app(client), PATH, {"input": "Hi", "stream": True})))
    kinds = [each["type"] for each in data]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 3
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(each["delta"] for each in data if each["type"].endswith("text.delta")) == HELLO
    last = strictly(Response, data[-1]["response"])
    assert last.output_text == HELLO
    assert last.usage.output_tokens > deltas
    assert data[0]["response"]["status"] == "in_progress"


def test_reasoning_and_calls_are_items(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = Chats(monkeypatch)
    made = pieces_of(
        Delta(reasoning="Let me "),
        Delta(reasoning="see."),
        Delta(content="Looking."),
        Delta(tool_call=ToolCallDelta(0, "call_a", "weather", "")),
        Delta(tool_call=ToolCallDelta(0, arguments='{"city":')),
        Delta(tool_call=ToolCallDelta(0, arguments='"Rome"}')),
        Delta(tool_call=ToolCallDelta(1, "call_b", "weather", "{}")),
        reason="tool_calls",
    )
    monkeypatch.setattr("skynet.gateway.responses.chat_pieces", made)
    body = {"input": "Hi", "tools": [TOOL], "stream": True}
    data = checked(events_of(post(fake_app(client), PATH, body)))
    items = [each["item"] for each in data if each["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "message", *["function_call"] * 2]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Let me see."}]
    assert (items[2]["call_id"], items[2]["arguments"]) == ("call_a", '{"city":"Rome"}')
    assert (items[3]["call_id"], items[3]["arguments"]) == ("call_b", "{}")
    done = [e for e in data if e["type"] == "response.function_call_arguments.done"]
    assert [each["arguments"] for each in done] == ['{"city":"Rome"}', "{}"]
    assert data[-1]["type"] == "response.completed"
    assert data[-1]["response"]["output"] == items
    kinds = [each["type"] for each in data]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    tools = data[-1]["response"]["tools"]
    assert tools == [TOOL]
    assert chats.last.tools == [{"type": "function", "function": {
        name: TOOL[name] for name in ("name", "description", "parameters", "strict")
    }}]  # fmt: skip
    whole = post(fake_app(client), PATH, {**body, "stream": False}).json()
    assert [item["type"] for item in strictly(Response, whole).model_dump()["output"]] == [
        item["type"] for item in items
    ]


def test_what_is_cut_is_incomplete(client: FakeClient) -> None:
    app, body = fake_app(client), {"input": "Hi", "max_output_tokens": 3}
    answer = strictly(Response, post(app, PATH, body).json())
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    assert HELLO.startswith(answer.output_text)
    data = checked(events_of(post(app, PATH, {**body, "stream": True})))
    assert data[-1]["type"] == "response.incomplete"


def test_an_error_in_mid_stream_is_the_last_event() -> None:
    client = FakeClient(decoder(), lambda _: ShardFailed("shard 1 of stage 0: broken"))
    data = checked(events_of(post(fake_app(client), PATH, {"input": "Hi", "stream": True})))
    assert [each["type"] for each in data] == [
        "response.created",
        "response.in_progress",
        "response.failed",
    ]
    response = strictly(Response, data[-1]["response"])
    assert (response.status, response.error.message) == ("failed", "shard 1 of stage 0: broken")


def test_codex_is_understood(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    chats = Chats(monkeypatch)
    response = post(fake_app(client), PATH, CODEX)
    data = checked(events_of(response))
    assert data[-1]["type"] == "response.completed"
    ignored = response.headers["x-skynet-ignored"]
    assert ignored == "tools.image_generation, tools.namespace, tools.web_search"
    chat = chats.last
    assert chat.messages == [
        {
            "role": "system",
            "content": "You are a coding agent.\n\n<permissions>read only</permissions>",
        },
        {"role": "user", "content": "<environment>/src</environment>\n\nlist the files"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I need a shell.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "shell", "arguments": '{"command":["ls"]}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "a.py"},
    ]
    assert [tool["function"]["name"] for tool in chat.tools or []] == ["shell"]
    assert (chat.tool_choice, chat.reasoning_effort) == ("auto", "medium")


@pytest.mark.parametrize("empty", [{"input": ""}, {"input": []}, {}, {"instructions": "Be brief."}])
def test_a_probe_without_input_is_answered(client: FakeClient, empty: dict[str, Any]) -> None:
    response = post(fake_app(client), PATH, {**empty, "max_output_tokens": 1})
    assert strictly(Response, response.json()).usage.output_tokens == 1


def test_a_schema_and_a_choice_reach_the_chat(
    client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    structures: list[Any] = []
    monkeypatch.setattr(
        "skynet.gateway.clusters.Cluster.submit",
        lambda self, ids, structured_outputs=None, **more: (
            structures.append(structured_outputs)
            or self._submitted(
                lambda: [self.client.submit_prompt(ids, annotations=more["annotations"])]
            )
        ),
    )
    chats = Chats(monkeypatch)
    form = {"type": "json_schema", "name": "thing", "schema": schema, "strict": True}
    body = {
        "input": "Hi",
        "text": {"format": form, "verbosity": "low"},
        "tools": [TOOL, {**TOOL, "name": "time"}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "time"}],
        },
    }
    answer = strictly(Response, post(fake_app(client), PATH, body).json())
    assert structures == [{"json": schema}]
    assert answer.text.format.name == "thing"
    assert chats.last.tool_choice == "required"
    assert [tool["function"]["name"] for tool in chats.last.tools or []] == ["time"]
    named = {"type": "function", "name": "time"}
    post(fake_app(client), PATH, {**body, "text": None, "tool_choice": named})
    assert chats.last.tool_choice == {"type": "function", "function": {"name": "time"}}
    post(fake_app(client), PATH, {"input": "Hi", "text": {"format": {"type": "json_object"}}})
    assert structures[-1] == {"json_object": True}


def test_logprobs_are_of_each_token(client: FakeClient) -> None:
    body = {"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = strictly(Response, post(fake_app(client), PATH, body).json())
    part = answer.output[0].content[0]
    assert "".join(each.token for each in part.logprobs).startswith(HELLO)
    data = checked(events_of(post(fake_app(client), PATH, {**body, "stream": True})))
    deltas = [each for each in data if each["type"] == "response.output_text.delta"]
    assert all(each["logprobs"][0]["logprob"] == -0.5 for each in deltas)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "web_search"}, "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "response_format"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_refused(client: FakeClient, fields: dict[str, Any], param: str) -> None:
    response = post(fake_app(client), PATH, {"input": "Hi", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert not client.records


def test_a_response_is_read_again(client: FakeClient) -> None:
    app = fake_app(client)
    body = {"input": "Hi", "stream": True, "metadata": {"a": "b"}, "instructions": "Be brief."}
    first = events_of(post(app, PATH, body))
    path = f"{PATH}/{first[0][1]['response']['id']}"
    assert events_of(call(app, "GET", f"{path}?stream=true")) == first
    rest = events_of(call(app, "GET", f"{path}?stream=true&starting_after=4"))
    assert rest == first[5:]
    with_header = call(app, "GET", f"{path}?stream=true", **{"last-event-id": "4"})
    assert events_of(with_header) == rest
    assert call(app, "GET", path).json() == first[-1][1]["response"]
    missing = call(app, "GET", f"{PATH}/resp_00000000-0000-0000-0000-000000000000")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "answer_not_found")
    as_chat = call(app, "GET", f"/v1/chat/completions/{path.rpartition('_')[2]}")
    assert as_chat.status_code == 404


@pytest.mark.parametrize("streams", [False, True])
def test_a_response_of_a_client_that_left_is_cancelled(client: FakeClient, streams: bool) -> None:
    client.hold_at = 2
    asyncio.run(leave(fake_app(client), PATH, {"input": "Hi", "stream": streams}, client))
    assert len(client.records) == 1
    assert client.cancelled == set(client.records)
