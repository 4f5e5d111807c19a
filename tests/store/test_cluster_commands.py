"""`skynet generate`, `requests` and completion on a cluster of which only Redis is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import kombu.pools
import pytest
import redis
from checkpoints import letters, save_tokenizer
from chord_cases import queued
from click.testing import CliRunner, Result
from orchestrator_cases import CONFIG, submit
from waiting import wait_for

from skynet import cli
from skynet.checkpoint.transformers_tokenizer import tokenizer_files
from skynet.local.server import EmbeddedServer
from skynet.request.record import End, Logprobs, Token
from skynet.settings import settings
from skynet.store.connection import connect
from skynet.store.members import Member, Members
from skynet.store.requests import Requests
from skynet.store.staging import StagingJob
from skynet.store.targets import Target, Targets
from skynet.store.weights import WeightStore
from skynet.wire import keys

ROOT = Path(__file__).parents[2]
TARGET = Target("d", "tiny", "float32", "auto", num_slots=2, slot_tokens=64, stages=1, shards=2)


@pytest.fixture
def cluster(server: EmbeddedServer, client: redis.Redis, tmp_path: Path) -> EmbeddedServer:
    """A model without weights, asked for in 1 stage x 2 shards; no workers."""
    save_tokenizer(tmp_path)
    files = tokenizer_files(tmp_path)
    WeightStore(client).stage(StagingJob("d", "tiny", CONFIG, {}, files, None, 4096))  # type: ignore[arg-type]
    Targets(client).ask(TARGET)
    return server


@pytest.fixture
def leases(cluster: EmbeddedServer) -> Iterator[Members]:
    connection = connect(cluster.url, single_connection=True)
    yield Members(connection, 60)
    connection.close()


def skynet(server: EmbeddedServer, *words: str, **options: Any) -> Result:
    """Run a command in this process."""
    settings.cache_clear()
    environment = {"SKYNET_REDIS_URL": server.url, **options.pop("env", {})}
    try:
        return CliRunner().invoke(cli.main, words, env=environment, **options)
    finally:
        settings.cache_clear()
        kombu.pools.reset()  # they outlive a client


def listed(server: EmbeddedServer, *words: str) -> dict[str, Any]:
    result = skynet(server, "requests", "--json", *words)
    assert result.exit_code == 0, result.output
    shown: dict[str, Any] = json.loads(result.stdout)
    return shown


@pytest.fixture
def waiting(cluster: EmbeddedServer, tmp_path: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """A `skynet generate` that waits for its answer: its standard output, and its stderr's file."""
    error = tmp_path / "stderr"
    with error.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "skynet.cli", "generate", "--logprobs", "1", "-"],
            env={**os.environ, "SKYNET_REDIS_URL": cluster.url, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"hello\n")
        process.stdin.close()
        yield process.stdout, error
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.timeout(120)
def test_generate_says_why_it_waits_and_answers_when_it_can(
    waiting: tuple[IO[bytes], Path], client: redis.Redis, leases: Members
) -> None:
    stdout, stderr = waiting
    # Given neither orchestrator nor shards: the command says so after a while
    said = wait_for("a notice", stderr.read_text)
    assert said == (
        "The request waits: no orchestrator (start one with `celery -A skynet worker -Q "
        "orchestrator`); stage0.shard0, stage0.shard1 have no worker\n"
    )
    # When an orchestrator and one worker come / Then it says what is still missing
    leases.renew(Member("o", "orchestrator@here", "orchestrator", "here", 7, "leading"))
    leases.renew(Member("w", "worker-8@here", "", "here", 8, "spare"))
    wait_for("another notice", lambda: stderr.read_text().count("\n") > 1)
    assert stderr.read_text() == f"{said}The request waits: stage0.shard1 has no worker\n"
    # When it is answered / Then the answer alone is on its standard output
    records = Requests(client, 1000)
    (request_id,) = records.open_ids()
    record = records.read(request_id)
    assert record is not None
    assert len(record.prompt) == len("hello")
    tokens = [Token(0, 5, "a", Logprobs(-0.5, ((5, -0.5),))), Token(1, 6, "b", Logprobs(-1.0))]
    for token in tokens:
        records.writer.append([(request_id, token)])
    timings = {"first_token_s": 0.5, "decode_tokens_per_s": 3.0}
    records.writer.finish(request_id, End(finish_reason="stop", timings=timings))
    texts = [letters([token.id]) for token in tokens]
    assert stdout.read().decode() == (
        f"ab\n{texts[0]!r} -0.5000 |  {texts[0]!r} -0.5000\n{texts[1]!r} -1.0000\n"
    )
    assert "5 prompt tokens, 2 tokens (stop)" in stderr.read_text()


def test_requests_are_listed_with_what_they_wait_for(
    cluster: EmbeddedServer, client: redis.Redis
) -> None:
    # Given requests of which one runs, one is to be cancelled and one is damaged
    assert "No requests." in skynet(cluster, "requests").stdout
    for name in ("running", "waiting", "cancelled", "damaged"):
        submit(client, name, model="d", max_tokens=9)
    records = Requests(client, 1000)
    records.writer.start(["running"])
    records.writer.append([("running", Token(0, 7, "x"))])
    records.ask_cancel("cancelled")
    client.hset(keys.request_key("damaged"), "prompt", b"nonsense")
    # When / Then
    shown = listed(cluster)
    assert shown["open"] == 4
    assert "no orchestrator" in shown["waiting_for"][0]
    states = {request["id"]: request["state"] for request in shown["requests"]}
    assert states == {
        "running": "running",
        "waiting": "waiting",
        "cancelled": "cancelling",
        "damaged": "unreadable",
    }
    first = shown["requests"][0]
    assert (first["prompt_tokens"], first["tokens"], first["max_tokens"]) == (3, 1, 9)
    assert (first["model"], first["task"], first["priority"]) == ("tiny", "generate", 0)
    assert first["age_s"] >= 0
    # And people see the same, no longer than they want
    page = skynet(cluster, "requests", "--limit", "2")
    rows = [line.split() for line in page.stdout.splitlines()]
    assert rows[0] == ["id", "state", "age", "prompt", "tokens", "model"]
    assert rows[1][:2] == ["running", "running"]
    assert rows[1][-5:] == ["3", "1", "of", "9", "tiny"]
    assert page.stdout.splitlines()[-1] == "and 2 more; --limit shows them"
    assert "They wait: no orchestrator" in page.stderr


def test_requests_are_cancelled_by_the_beginning_of_their_ids(
    cluster: EmbeddedServer, client: redis.Redis
) -> None:
    # Given
    for name in ("3f2a-1", "3f2a-2", "77", "88"):
        submit(client, name)
    records = Requests(client, 1000)

    def cancelled() -> list[str]:
        read = [records.read(request_id) for request_id in records.open_ids()]
        return [record.id for record in read if record is not None and record.cancelled]

    # When one is named / Then it alone is cancelled, and the orchestrator has a message
    result = skynet(cluster, "requests", "cancel", "7", "77")
    assert (result.exit_code, result.stderr) == (0, "Cancelled 1 request.\n")
    assert cancelled() == ["77"]
    assert len(queued(client, keys.ORCHESTRATOR_QUEUE)) == 1
    # When ids do not tell / Then nothing is cancelled
    for words, message in ((["3f2a"], "2 ids start with '3f2a'"), (["5"], "starts with '5'")):
        refused = skynet(cluster, "requests", "cancel", "88", *words)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert message in refused.stderr
    # When all are named / Then the command asks first
    denied = skynet(cluster, "requests", "cancel", "--all", input="n\n")
    assert denied.exit_code == 1
    assert "Cancel 4 requests?" in denied.stderr
    assert cancelled() == ["77"]
    assert skynet(cluster, "requests", "cancel", "--all", "--yes").exit_code == 0
    assert len(cancelled()) == 4


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["models", "remove", "ti"], ["tiny"]),
        (["models", "verify", "x"], []),
        (["worker", "-Q", "stage0"], ["stage0.shard0", "stage0.shard1"]),
        (["worker", "-Q", "o"], ["orchestrator"]),
        (["requests", "cancel", "3f"], ["3f2a-1"]),
    ],
)
def test_the_shell_completes_names_from_redis(
    cluster: EmbeddedServer, client: redis.Redis, typed: list[str], words: list[str]
) -> None:
    # Given
    submit(client, "3f2a-1")
    # When
    environment = {
        "_SKYNET_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["skynet", *typed]),
        "COMP_CWORD": str(len(typed)),
    }
    result = skynet(cluster, env=environment, prog_name="skynet")
    # Then
    completed = [line.partition(",")[2] for line in result.stdout.splitlines() if line]
    assert completed == words
