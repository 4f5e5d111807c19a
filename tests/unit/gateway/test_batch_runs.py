"""How batches run: after people, each line for itself, each batch once."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gateway_fakes import FakeClient, decoder, fake_app

from skynet.gateway.batch import runner as runner_module
from skynet.gateway.batch.batches import Batch, Batches
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


def test_a_batch_that_waits_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two batches, of which the older one gets no answer
    async def waiting(gateway: Any, origin: Any, url: str, body: dict[str, Any]) -> Any:
        if body["messages"][0]["content"] == "wait":
            await asyncio.Event().wait()
        return {"object": "chat.completion"}

    monkeypatch.setattr(runner_module, "answer", waiting)
    batches, gateway = Batches(tmp_path, 10**6), fake_app(FakeClient(decoder())).state.gateway

    def created(content: str) -> Batch:
        body = {"messages": [{"role": "user", "content": content}]}
        line = json.dumps({"custom_id": "a", "url": URL, "body": body}).encode()
        stored = batches.files.add(io.BytesIO(line), "a.jsonl", "batch", "")
        return batches.create(URL, stored.id, "1h", "", {})

    first, second = created("wait"), created("answer")

    # When
    async def run() -> None:
        running = asyncio.create_task(batches.run_all(gateway))
        async with asyncio.timeout(60):
            while batches.get(second.id, None).status != "completed":
                await asyncio.sleep(0.05)
        assert batches.get(first.id, None).status == "in_progress"
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(run())
    # Then the first one can be run again
    with batches.lock(first) as is_free:
        assert is_free
