"""How batches run: after people, each line for itself, each batch once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import FakeClient, decoder, fake_app

from skynet.gateway.batch import runner as runner_module
from skynet.gateway.batch.batches import Batches
from skynet.gateway.batch.runner import BatchRunner
from skynet.gateway.run import Origin

URL = "/v1/chat/completions"


def run_lines(client: FakeClient, directory: Path, *bodies: dict[str, Any]) -> BatchRunner:
    """Answer these requests."""
    source = directory / "requests.jsonl"
    lines = [
        {"custom_id": str(number), "url": URL, "body": {"messages": [], **body}}
        for number, body in enumerate(bodies)
    ]
    source.write_text("\n".join(json.dumps(line) for line in lines))
    gateway = fake_app(client).state.gateway
    output, errors = directory / "answers.jsonl", directory / "errors.jsonl"
    runner = BatchRunner(gateway, source, output, errors, Origin("batch"))
    asyncio.run(runner.run())
    return runner


def test_a_line_cannot_overtake_people(tmp_path: Path) -> None:
    client = FakeClient(decoder())
    messages = [{"role": "user", "content": "Hi"}]
    run_lines(
        client,
        tmp_path,
        {"messages": messages, "priority": 9},
        {"messages": messages, "service_tier": "priority"},
    )
    assert [record.priority for record in client.records.values()] == [0, 0]


def test_a_line_that_breaks_something_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a line at which something of ours fails
    answer = runner_module.answer

    async def breaking(gateway: Any, origin: Any, url: str, body: dict[str, Any]) -> Any:
        if body["messages"][0]["content"] == "break":
            raise KeyError("ours")
        return await answer(gateway, origin, url, body)

    monkeypatch.setattr(runner_module, "answer", breaking)
    # When
    runner = run_lines(
        FakeClient(decoder()),
        tmp_path,
        {"messages": [{"role": "user", "content": "break"}]},
        {"messages": [{"role": "user", "content": "Hi"}]},
    )
    # Then the other one is answered
    assert (runner.counts.completed, runner.counts.failed) == (1, 1)
    assert json.loads(runner.errors.read_text())["response"]["status_code"] == 500


def test_a_batch_that_another_gateway_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    # Given a batch that has failed since this gateway has listed it
    batches = Batches(tmp_path / "batches", 10**6)
    source = tmp_path / "requests.jsonl"
    source.write_text("{}")
    with source.open("rb") as file:
        stored = batches.files.add(file, "requests.jsonl", "batch", "")
    listed = batches.create(URL, stored.id, "24h", "", {})
    ended = replace(listed, status="failed", ended_at=5, problem="line 1: no JSON")
    batches.save(ended)
    # When
    asyncio.run(batches._run(fake_app(FakeClient(decoder())).state.gateway, listed))
    # Then
    assert batches.get(listed.id, None) == ended
