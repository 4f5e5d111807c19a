"""A gateway over clusters without Redis: real tokenizers, options and answers' text, made tokens.

Everything from `Cluster` upwards is the gateway's own; below it, `FakeClient` keeps records in
memory and answers each request as a test says.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from made_tokenizers import byte_level

from skynet.client.client import Client, record_of, samples_of
from skynet.client.generation import Generation
from skynet.client.served_model import ServedModel
from skynet.engine.output import ModelInfo, Output
from skynet.errors import RequestCancelled, SkynetError
from skynet.gateway.answer_form import AnswerForm
from skynet.gateway.app import create_app
from skynet.gateway.chat import ChatPiece
from skynet.gateway.clusters import Cluster, Clusters, Served
from skynet.gateway.config import GatewayConfig
from skynet.gateway.prompts import EncodedPrompt, chat_prompt
from skynet.gateway.schemas.chat import ChatBody
from skynet.models.registry import load_architecture
from skynet.request.generation_config import GenerationDefaults
from skynet.request.record import End, Logprobs, Record, Token
from skynet.request.text_tasks import TextTasks
from skynet.store.targets import Target
from skynet.tokenizer.staged_tokenizer import FILE, StagedTokenizer
from skynet.tokenizer.text import Text

# Calls and thoughts are written as Qwen 3 writes them.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call></tool_call><|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 400,
    "max_position_embeddings": 512,
}
END = "<|im_end|>"
ENCODER = {
    "model_type": "bert",
    "hidden_size": 48,
    "intermediate_size": 83,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "vocab_size": 400,
    "max_position_embeddings": 512,
}
HELLO = "Hello world, how are you today?"

# What a request is answered with: a text; a text task's answer; or an error.
Answer = str | dict[str, Any] | SkynetError


def made_text(template: str | None = TEMPLATE) -> Text:
    """A byte-level BPE with a chat template."""
    staged = StagedTokenizer(
        backend=byte_level("<|endoftext|>", "<|im_start|>", END),
        special_tokens={"eos_token": END, "bos_token": "<|endoftext|>"},
        chat_template=template,
        pairs="typed",
    )
    return Text({FILE: staged.to_json()})


def decoder() -> ServedModel:
    """A model that generates."""
    arch = load_architecture(CONFIG)
    text = made_text()
    return ServedModel(text, GenerationDefaults(), TextTasks.of(arch, {}, text))


def encoder(
    head: str = "Model", files: Mapping[str, bytes] | None = None, **fields: Any
) -> ServedModel:
    """A model that embeds or, with the head ForSequenceClassification, classifies."""
    arch = load_architecture({**ENCODER, "architectures": [f"Bert{head}"], **fields})
    text = made_text(None)
    return ServedModel(text, GenerationDefaults(), TextTasks.of(arch, files or {}, text))


def vector_of(record: Record) -> Answer:
    """A vector that depends on the tokens only."""
    numbers = np.random.default_rng(record.prompt).normal(size=48).astype(np.float32)
    return {"embedding": [float(str(number)) for number in numbers]}


class FakeClient(Client):
    """A cluster's client, without the cluster.

    answer: of each request.
    hold_at: a reader waits before the token of this number, until the request is cancelled.
    records: of all requests, in their order.
    cancelled: ids of requests that were.
    """

    def __init__(
        self, model: ServedModel, answer: Callable[[Record], Answer] = lambda _: HELLO
    ) -> None:
        super().__init__("redis://localhost:1/0", lazy=True)
        self.model, self.answer = model, answer
        self.hold_at: int | None = None
        self.held = asyncio.Event()
        self.records: dict[str, Record] = {}
        self.cancelled: set[str] = set()
        self.__dict__["requests"] = _Requests(self)
        self.__dict__["redis"] = _Redis()

    def target(self) -> Target:
        return Target("d" * 16, "made", "float32", 1, 8, 1024)

    def served_model(self, target: Target) -> ServedModel:
        return self.model

    def send(self, task: str, arguments: tuple[str, ...] = (), **options: Any) -> None:
        pass

    def _submit(self, prompts: Any, arguments: Any, options: Mapping[str, Any]) -> Any:
        target = self.target()
        encoded = self.model.encode_all(prompts, arguments, options, target)
        records = [
            sample
            for ids, checked in encoded
            for sample in samples_of(
                record_of(ids, checked, arguments, target, 1000.0), arguments.n or 1
            )
        ]
        self.records |= {record.id: record for record in records}
        return [Generation(each.id, self, each.deadline) for each in records]

    @asynccontextmanager
    async def async_answers(self) -> AsyncIterator[Any]:
        yield _Answers(self)

    def close(self) -> None:
        pass

    def items(self, request_id: str) -> list[Token | End]:
        """The answer to a request: text, stop strings and limits are the engine's."""
        record = self.records[request_id]
        answer = self.answer(record)
        if isinstance(answer, SkynetError):
            return [End(error=type(answer).__name__, message=str(answer))]
        if isinstance(answer, dict):
            return [End(answer=answer)]
        text, arch = self.model.text, self.model.text_tasks.arch
        end_id = text.encode_rendered(END)[0]
        info = ModelInfo(arch, text, frozenset({end_id}), self.target().slot_tokens)
        output, items = Output.of(record, info), []
        wanted = record.options.logprobs
        for token in [*text.encode_inside(answer), end_id]:
            logprobs = None if wanted is None else Logprobs(-0.5, ((token, -0.5),)[:wanted])
            items.append(output.append(token, logprobs))
            if output.finish_reason:
                break
        rest, stop = output.flush(), output.stop_strings.matched
        return [*items, End(rest, output.finish_reason, cached_tokens=2, stop=stop)]


class _Requests:
    clock = None

    def __init__(self, client: FakeClient) -> None:
        self._client = client

    def read(self, request_id: str) -> Record | None:
        return self._client.records.get(request_id)

    def ask_cancel(self, request_id: str) -> bool:
        is_open = request_id not in self._client.cancelled
        self._client.cancelled.add(request_id)
        return is_open


class _Redis:
    def get(self, _key: str) -> bytes:
        return json.dumps({"state": "ready"}).encode()


class _Answers:
    def __init__(self, client: FakeClient) -> None:
        self._client = client

    async def record(self, request_id: str, _patience_s: float) -> Record | None:
        return self._client.records.get(request_id)

    async def now(self, _clock: Any, _patience_s: float) -> float:
        return 1000.0

    async def tokens(
        self, request_id: str, start: int = 0, _timeout_s: float | None = None
    ) -> AsyncGenerator[Token | End]:
        client = self._client
        for number, item in enumerate(client.items(request_id)):
            if number == client.hold_at:
                client.held.set()
                while request_id not in client.cancelled:
                    await asyncio.sleep(0.001)
                cancelled = RequestCancelled(f"request {request_id} was cancelled")
                yield End(error=type(cancelled).__name__, message=str(cancelled))
                return
            if isinstance(item, End) or number >= start:
                yield item


def fake_app(client: FakeClient, config: GatewayConfig | None = None) -> FastAPI:
    """The gateway over one such cluster, whose model is called `made`."""
    clusters = Clusters({})
    clusters.all.append(Cluster("", client))
    return create_app(clusters, config or GatewayConfig())


def call(app: FastAPI, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
    """One request, and its answer. body: JSON's types, or what is sent."""

    async def send() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8000", timeout=60
        ) as client:
            if isinstance(body, str | bytes):
                kind = {"content-type": "application/json"}
                return await client.request(method, path, content=body, headers=kind | headers)
            return await client.request(method, path, json=body, headers=headers)

    return asyncio.run(send())


def post(app: FastAPI, path: str, body: Any, **headers: str) -> httpx2.Response:
    return call(app, "POST", path, body, **headers)


def events_of(response: httpx2.Response) -> list[tuple[str, Any]]:
    """The name and the data of each event of a stream; comments are left out."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if line[:1] not in ("", ":")
        )
        if "data" in fields:
            text = fields["data"]
            events.append((fields.get("event", ""), text if text == "[DONE]" else json.loads(text)))
    return events


async def leave(app: FastAPI, path: str, body: Any, client: FakeClient) -> None:
    """Send a request, and close the connection when its answer is held."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await client.held.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    async with asyncio.timeout(30):
        await app(scope, receive, send)


def strictly(kind: Any, data: Any, allowed: frozenset[str] = frozenset()) -> Any:
    """The object, validated as a client's type without conversions and without unknown fields.

    allowed: fields that the type does not have.
    """
    made = kind.model_validate(data, strict=True)
    _no_extras(made, allowed)
    return made


def _no_extras(value: Any, allowed: frozenset[str]) -> None:
    if isinstance(value, list):
        for each in value:
            _no_extras(each, allowed)
    elif hasattr(value, "model_extra"):
        extra = set(value.model_extra or {}) - allowed
        assert not extra, f"{type(value).__name__}: {extra}"
        for name in type(value).model_fields:
            _no_extras(getattr(value, name), allowed)


def pieces_of(*deltas: Any, reason: str = "stop") -> Any:
    """A stand-in for `chat_pieces`: these deltas, whatever the tokens of the run are."""

    async def pieces(run: Any, after: str = "") -> AsyncGenerator[ChatPiece]:
        async with aclosing(run.steps(after)) as steps:
            async for _ in steps:  # the run ends, its tokens are counted
                pass
        for number, delta in enumerate(deltas):
            yield ChatPiece(0, [delta], [], "", str(number + 1))
        yield ChatPiece(0, [], [], reason, str(len(deltas)))

    return pieces


class Chats:
    """Keeps the chats that are started; their prompts are those of the template."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[ChatBody] = []
        for module in ("chat", "routes.messages"):
            patch.setattr(f"skynet.gateway.{module}.chat_prompt", self._prompt)

    def _prompt(self, served: Served, body: ChatBody, form: AnswerForm) -> EncodedPrompt:
        self.seen.append(body)
        return chat_prompt(served, body, form)

    @property
    def last(self) -> ChatBody:
        return self.seen[-1]
