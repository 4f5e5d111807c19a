"""A SkyNet app for tests, and chords of a tiny plan."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import redis
from plans import plan_for

from skynet.chords.app import SkynetCelery
from skynet.chords.messenger import Messenger
from skynet.models.registry import load_architecture
from skynet.planning.plan import Plan
from skynet.store.resp import RespConnection
from skynet.wire import codec

TTL_S = 60


def make_app(url: str) -> SkynetCelery:
    app = SkynetCelery("tests")
    app.use(url)
    app.__dict__["messenger"] = Messenger(app, RespConnection(url, 10), TTL_S)
    return app


def tiny_plan(stages: int = 2, shards: int = 2) -> Plan:
    arch = load_architecture(
        {
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "vocab_size": 100,
        }
    )
    return plan_for(arch, stages, shards, epoch=5, model="d")


def queued(client: redis.Redis, queue: str) -> list[dict[str, Any]]:
    """All messages of a queue, first come first, their bodies decoded; the queue is empty then."""
    messages = []
    while (text := client.rpop(queue)) is not None:
        message: dict[str, Any] = json.loads(text)  # type: ignore[arg-type]
        message["body"] = decoded_body(message)
        messages.append(message)
    return messages


def decoded_body(message: dict[str, Any]) -> Any:
    """The body of a message as kombu decodes it."""
    if message["properties"]["body_encoding"] != "base64":
        raise AssertionError(f"body encoding {message['properties']['body_encoding']}")
    raw = b64decode(message["body"])
    if message["content-type"] == codec.CONTENT_TYPE:
        return codec.decode(raw)
    return json.loads(raw)
