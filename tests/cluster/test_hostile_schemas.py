"""Schemas that are made to hurt: refused or followed, and nobody else is hurt."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from checkpoints import Tiny, letters
from gateways import GatewayProcess, gateway

from skynet.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
MIB = 2**20
MAX_GROWTH = 120 * MIB
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def attacked(
    cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    options = ("--receive-s", "20", "--max-body-mib", "1")
    with gateway(cluster.url, tmp_path_factory.mktemp("attacked"), "attacked", *options) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(attacked: GatewayProcess, tiny: Tiny) -> Iterator[None]:
    """Another client is answered all the while, and memory stays bounded."""
    before, ended, problems = attacked.process.memory_info().rss, threading.Event(), []
    messages = [{"role": "user", "content": letters(tiny.prompts[0])}]
    expected = letters(tiny.tokens[0])

    def talk() -> None:
        client = attacked.openai()
        ask: dict[str, Any] = {"model": "", "temperature": 0, "max_tokens": len(tiny.tokens[0])}
        while True:
            try:
                answer = client.chat.completions.create(messages=messages, **ask)  # type: ignore[arg-type]
                if answer.choices[0].message.content != expected:
                    problems.append(answer)
            except Exception as error:
                problems.append(error)
                return
            if ended.wait(0.1):
                return

    other = threading.Thread(target=talk)
    other.start()
    yield
    ended.set()
    other.join()
    assert not problems
    assert attacked.process.memory_info().rss - before < MAX_GROWTH
    assert attacked.process.status() != psutil.STATUS_ZOMBIE


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": letters([5])}], "max_tokens": 4, **fields}


SCHEMAS: dict[str, Any] = {
    "no schema": {"type": "nothing"},
    "itself": {"$ref": "#"},
    "elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
    "a huge repetition": {"type": "string", "pattern": "(a{1,1000}){1,1000}b"},
    "a bad pattern": {"type": "string", "pattern": "(((("},
    "a deep object": json.loads('{"type":"object","properties":{"a":' * 400 + "{}" + "}}" * 400),
    "many alternatives": {"anyOf": [{"const": f"value {n}"} for n in range(20_000)]},
    "a number of items": {"type": "array", "items": {}, "minItems": 10**9},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_hostile_schema_is_refused_or_followed(attacked: GatewayProcess, name: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMAS[name]}}
    with attacked.http() as http:
        answer = http.post(PATH, json=chat(response_format=wanted))
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert answer.json()["error"]["message"]
