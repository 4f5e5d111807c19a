"""/v1/chat/completions and /v1/completions: OpenAI's objects and errors, strictly."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from gateway_fakes import (
    HELLO,
    FakeClient,
    decoder,
    events_of,
    fake_app,
    leave,
    made_text,
    post,
    strictly,
)
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from skynet.client.served_model import ServedModel
from skynet.errors import ClusterUnreachable, NotFinite, QueueFull, RequestLost, ShardFailed
from skynet.request.record import Record

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
REASONING = frozenset({"reasoning", "reasoning_content"})
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def answering(text: str) -> FakeClient:
    return FakeClient(decoder(), lambda _: text)


def chunks_of(client: FakeClient, **fields: Any) -> list[ChatCompletionChunk]:
    """The chunks of a stream, which ends with [DONE]."""
    body = {"messages": HI, "stream": True, **fields}
    *events, last = events_of(post(fake_app(client), CHAT, body))
    assert last == ("", "[DONE]")
    return [strictly(ChatCompletionChunk, data, REASONING) for _, data in events]


def test_a_chat_whole() -> None:
    # When
    answer = post(fake_app(answering(HELLO)), CHAT, {"messages": HI, "n": 2, "logprobs": True})
    # Then
    chat = strictly(ChatCompletion, answer.json())
    assert [choice.message.content for choice in chat.choices] == [HELLO] * 2
    assert [choice.index for choice in chat.choices] == [0, 1]
    assert chat.choices[0].finish_reason == "stop"
    assert chat.choices[0].logprobs is not None
    assert chat.usage is not None
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert chat.id.startswith("chatcmpl-")
    assert answer.headers["x-request-id"]


def test_the_chunks_of_a_chat() -> None:
    # When
    chunks = chunks_of(answering(HELLO), stream_options={"include_usage": True})
    # Then the role comes first and once, the end has no delta, the usage is a chunk of its own
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == HELLO
    assert deltas[-1].model_dump(exclude_unset=True) == {}
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_has_a_usage() -> None:
    assert all("usage" not in chunk.model_fields_set for chunk in chunks_of(answering(HELLO)))


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_have_an_index_and_their_own_finish_reason(stream: bool) -> None:
    # Given a model that thinks, speaks and calls
    client = answering(f"<think>\nhm\n</think>\n\nLet me see.\n{CALL}\n{CALL}")
    fields: dict[str, Any] = {"messages": HI, "tools": TOOLS}
    # When
    if not stream:
        data = post(fake_app(client), CHAT, fields).json()
        message = strictly(ChatCompletion, data, REASONING).choices[0].message
        calls = [(c.function.name, c.function.arguments) for c in message.tool_calls or []]
        text, reason = message.content, data["choices"][0]["finish_reason"]
        reasoning = data["choices"][0]["message"]["reasoning_content"]
        assert reasoning == data["choices"][0]["message"]["reasoning"]
    else:
        chunks = chunks_of(client, **fields)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        fragments = [part for delta in deltas for part in delta.tool_calls or []]
        firsts = [part for part in fragments if part.id]
        calls = [
            (
                first.function.name,
                "".join(
                    part.function.arguments or ""
                    for part in fragments
                    if part.index == first.index and part.function
                ),
            )
            for first in firsts
            if first.function
        ]
        assert [first.index for first in firsts] == [0, 1]
        text = "".join(delta.content or "" for delta in deltas)
        reasoning = "".join((d.model_extra or {}).get("reasoning", "") for d in deltas)
        reason = chunks[-1].choices[0].finish_reason
    # Then
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("weather", {"city": "Paris"})
    ] * 2
    assert (text.strip(), reasoning.strip(), reason) == ("Let me see.", "hm", "tool_calls")


def test_a_model_without_a_form_of_calls_is_told_the_functions_and_held_to_one() -> None:
    # Given
    text = made_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    model = decoder()
    plain = ServedModel(text, model.defaults, model.text_tasks)
    client = FakeClient(plain, lambda _: '{"name": "weather", "arguments": {"city": "Rome"}}')
    body = {"messages": HI, "tools": TOOLS}
    # When / Then: auto is refused, a forced call is a grammar and a description
    refused = post(fake_app(client), CHAT, body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")
    data = post(fake_app(client), CHAT, {**body, "tool_choice": "required"}).json()
    (record,) = client.records.values()
    assert "grammar" in (record.options.structured_outputs or "")
    assert "weather" in text.decode(record.prompt, False)
    (call,) = data["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert data["choices"][0]["finish_reason"] == "tool_calls"
    # And without tools, or with tool_choice none, the same text is content
    for choice in ({"tool_choice": "none"}, {"tools": None}):
        data = post(fake_app(client), CHAT, {**body, **choice}).json()
        assert data["choices"][0]["message"]["content"].startswith('{"name"')


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_to_what_the_context_holds(field: str) -> None:
    # Given a client that always asks for too much
    client = answering("word " * 2000)
    # When
    data = post(fake_app(client), CHAT, {"messages": HI, field: 32_000}).json()
    # Then
    (record,) = client.records.values()
    assert record.options.max_tokens == 1024 - len(record.prompt)
    assert data["choices"][0]["finish_reason"] == "length"


def test_a_prompt_that_leaves_no_room_is_recognised_by_agents() -> None:
    # When
    long = [{"role": "user", "content": "word " * 2000}]
    answer = post(fake_app(answering(HELLO)), CHAT, {"messages": long})
    # Then
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert "this model's maximum context length is" in error["message"].lower()
    assert error["n_ctx"] == 1024
    assert error["n_prompt_tokens"] > 1024
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("error", "status", "code", "retries"),
    [
        (QueueFull("full"), 429, "queue_full", True),
        (ClusterUnreachable("away"), 503, "cluster_unavailable", True),
        (RequestLost("lost"), 500, "request_lost", True),
        (ShardFailed("poison"), 500, "shard_failed", False),
        (NotFinite("NaN"), 500, "not_finite", False),
    ],
)
def test_errors_say_whether_to_try_again(
    error: Any, status: int, code: str, retries: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given errors of the submission, and of the answer
    submission = status in (429, 503)
    client = FakeClient(decoder(), lambda _: HELLO if submission else error)

    def refusing(*_: Any) -> Any:
        raise error

    if submission:
        monkeypatch.setattr(client, "_submit", refusing)
    # When
    answer = post(fake_app(client), CHAT, {"messages": HI})
    # Then
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (answer.headers.get("x-should-retry") != "false") == retries
    assert ("retry-after" in answer.headers) == submission
    if submission:
        assert 1 <= int(answer.headers["retry-after"]) <= 120


def test_an_error_in_mid_stream_is_an_event_and_the_stream_ends() -> None:
    client = FakeClient(decoder(), lambda _: RequestLost("Redis lost its data"))
    events = events_of(post(fake_app(client), CHAT, {"messages": HI, "stream": True}))
    assert events[-2][1]["error"]["code"] == "request_lost"
    assert events[-1] == ("", "[DONE]")


@pytest.mark.parametrize(
    "content",
    [
        "Hello",
        [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}],
    ],
)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_contents_and_roles_that_clients_send(content: Any, role: str) -> None:
    client = answering(HELLO)
    messages = [
        {"role": role, "content": content},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "user", "content": "Hi"},
    ]
    answer = post(fake_app(client), CHAT, {"messages": messages})
    assert answer.status_code == 200, answer.text
    (record,) = client.records.values()
    prompt = client.model.text.decode(record.prompt, False)
    assert "Hello" in prompt


def test_an_image_is_refused_by_name() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://x"}}
    body = {"messages": [{"role": "user", "content": [part]}]}
    answer = post(fake_app(answering(HELLO)), CHAT, body)
    assert answer.status_code == 400
    assert "image_url" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prompts", [["Hi there", "You"], [[5, 6, 7], [8, 9]]])
def test_a_completion_with_echo_has_an_entry_for_each_token_of_prompt_and_answer(
    prompts: Any,
) -> None:
    # Given
    scores: list[Any] = []

    class Scoring(FakeClient):
        def items(self, request_id: str) -> Any:
            *tokens, end = super().items(request_id)
            record: Record = self.records[request_id]
            scores.append(record.options.prompt_logprobs)
            entry = {"logprob": -2.0, "top": [[record.prompt[-1], -2.0]]}
            end.answer["prompt_logprobs"] = [None, *[entry] * (len(record.prompt) - 1)]
            return [*tokens, end]

    body = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": 1}
    # When
    answer = post(fake_app(Scoring(decoder())), COMPLETIONS, {**body, "temperature": 0})
    # Then it is what evaluation harnesses slice; the first entry is null, as OpenAI's was
    choices = answer.json()["choices"]
    assert scores == [1, 1]
    assert [choice["index"] for choice in choices] == [0, 1]
    for choice, prompt in zip(choices, prompts, strict=True):
        lists = choice["logprobs"]
        assert len({len(each) for each in lists.values()}) == 1
        assert lists["token_logprobs"][0] is None
        assert None not in lists["token_logprobs"][1:]
        if isinstance(prompt, str):
            assert choice["text"].startswith(prompt)
        else:
            assert len(lists["tokens"]) == len(prompt) + 1


def test_a_recovery_is_told_in_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a cluster that waits for a worker
    client = answering(HELLO)
    monkeypatch.setattr(
        client.redis, "get", lambda _: json.dumps({"state": "waiting for stage0.shard1"}).encode()
    )
    app = fake_app(client)
    cluster = app.state.gateway.clusters.all[0]
    assert asyncio.run(cluster.why_silent()) == "recovering: waiting for stage0.shard1"


@pytest.mark.parametrize("fields", [{"stream": True}, {}, {"n": 3}])
def test_a_client_that_leaves_before_or_in_its_answer_cancels_it(fields: dict[str, Any]) -> None:
    for hold_at in (0, 3):
        client = answering(HELLO)
        client.hold_at = hold_at
        app = fake_app(client)
        asyncio.run(leave(app, CHAT, {"messages": HI, **fields}, client))
        assert client.cancelled == set(client.records)
        assert app.state.gateway.open_answers == 0


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.booleans())
def test_any_text_is_streamed_as_it_is(text: str, stream: bool) -> None:
    # Given text with halves of characters and of stop strings between tokens
    client = answering(text + "STOP and more")
    body = {"prompt": "Hi", "stop": ["STOP"], "max_tokens": 500, "stream": stream}
    # When
    answer = post(fake_app(client), COMPLETIONS, body)
    # Then
    if stream:
        chunks = [data for _, data in events_of(answer)[:-1]]
        shown = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    else:
        shown = answer.json()["choices"][0]["text"]
    assert shown == text.partition("STOP")[0]
