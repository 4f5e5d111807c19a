"""OpenAI's and Anthropic's own clients against the routes, in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from gateway_fakes import HELLO, FakeClient, decoder, encoder, fake_app, vector_of
from openai import AsyncOpenAI, BadRequestError

BASE = "http://127.0.0.1:8000"
HI: Any = [{"role": "user", "content": "Hi"}]


def with_openai(client: FakeClient, use: Callable[[AsyncOpenAI], Awaitable[Any]]) -> Any:
    """What `use` returns with OpenAI's client of a gateway over this cluster."""

    async def run() -> Any:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=fake_app(client)))
        async with AsyncOpenAI(api_key="none", base_url=f"{BASE}/v1", http_client=http) as openai:
            return await use(openai)

    return asyncio.run(run())


def test_openai_reads_embeddings() -> None:
    client = FakeClient(encoder(), vector_of)
    # Its default is base64, which it decodes.
    answer = with_openai(
        client, lambda openai: openai.embeddings.create(model="made", input=["a cat", "the moon"])
    )
    expected = [vector_of(record) for record in client.records.values()]
    for each, wanted in zip(answer.data, expected, strict=True):
        assert each.embedding == pytest.approx(wanted["embedding"], rel=1e-7)  # type: ignore
    kinds = [json.loads(record.annotations)["kind"] for record in client.records.values()]
    assert kinds == ["embed", "embed"]


def test_openai_is_told_what_is_wrong_once() -> None:
    with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"):
        with_openai(
            FakeClient(encoder(), vector_of),
            lambda openai: openai.embeddings.create(model="made", input=[100_000]),
        )


def test_openai_reads_a_response() -> None:
    answer = with_openai(
        FakeClient(decoder()), lambda openai: openai.responses.create(model="made", input="Hi")
    )
    assert (answer.output_text, answer.status) == (HELLO, "completed")


def test_openai_accumulates_a_stream_of_a_response() -> None:
    async def use(openai: AsyncOpenAI) -> Any:
        async with openai.responses.stream(model="made", input="Hi") as stream:
            text = [e.delta async for e in stream if e.type == "response.output_text.delta"]
            return "".join(text), await stream.get_final_response()

    text, final = with_openai(FakeClient(decoder()), use)
    assert (text, final.output_text) == (HELLO, HELLO)


def with_anthropic(client: FakeClient, use: Callable[[Any], Awaitable[Any]]) -> Any:
    """As `with_openai`."""
    anthropic = pytest.importorskip("anthropic", exc_type=ImportError)

    async def run() -> Any:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=fake_app(client)))
        async with anthropic.AsyncAnthropic(
            api_key="none", base_url=BASE, http_client=http
        ) as messages:
            return await use(messages)

    return asyncio.run(run())


def test_anthropic_reads_a_message() -> None:
    answer = with_anthropic(
        FakeClient(decoder()),
        lambda made: made.messages.create(
            model="made", max_tokens=99, messages=HI, stop_sequences=["are you"]
        ),
    )
    assert (answer.content[0].text, answer.stop_reason) == ("Hello world, how", "stop_sequence")
    assert answer.stop_sequence == "are you"


def test_anthropic_accumulates_a_stream() -> None:
    async def use(made: Any) -> Any:
        async with made.messages.stream(model="made", max_tokens=99, messages=HI) as stream:
            return await stream.get_final_message()

    answer = with_anthropic(FakeClient(decoder()), use)
    assert (answer.content[0].text, answer.stop_reason) == (HELLO, "end_turn")
    assert answer.usage.output_tokens > 5


def test_anthropic_counts_tokens() -> None:
    client = FakeClient(decoder())
    counted = with_anthropic(
        client, lambda made: made.messages.count_tokens(model="made", messages=HI)
    )
    assert counted.input_tokens == len(client.model.text.chat(HI))
