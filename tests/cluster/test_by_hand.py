"""The bare Celery commands, each in a process, against a running Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from checkpoints import Tiny, letters
from processes import command, wait_for

from skynet.client.client import Client
from skynet.errors import NoModel
from skynet.local.server import EmbeddedServer
from skynet.staging.split import skysplit
from skynet.store.members import Member, Members
from skynet.wire import keys

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
NEW = 24


def run(server: EmbeddedServer, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of this Python's `-m WORDS` to its end."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, "SKYNET_REDIS_URL": server.url},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.fixture
def user(server: EmbeddedServer) -> Iterator[Client]:
    client = Client(server.url)
    yield client
    client.close()


def members(client: redis.Redis) -> dict[str, Member]:
    return {member.address or member.pinned: member for member in Members(client, 6).all()}


def test_a_cluster_by_hand(
    server: EmbeddedServer, client: redis.Redis, user: Client, tiny: Tiny, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        # Given workers that are started before there is any model
        for place in ("stage0.shard0", "stage0.shard1", "orchestrator"):
            stack.enter_context(
                command(
                    *("celery", "-A", "skynet", "worker", "-Q", place),
                    environment={"SKYNET_REDIS_URL": server.url},
                    log=tmp_path / f"{place}.log",
                    cwd=tmp_path,
                )
            )

        def states() -> list[str]:
            return sorted(member.state for member in members(client).values())

        wait_for("three workers", lambda: states() == ["leading", "spare", "spare"])
        assert len({member.node for member in members(client).values()}) == 3
        with pytest.raises(NoModel, match="skynet split"):
            user.submit_prompt([1])
        # When a model is split onto them
        first = skysplit(str(tiny.path), 1, 2, dtype="float32", url=server.url)
        # Then they load it and answer, also requests from before they were ready
        generation = user.submit_prompt(tiny.prompts[0], max_tokens=NEW)
        assert generation.get(timeout=60).token_ids == tiny.tokens[0]
        wait_for("two that are ready", lambda: states() == ["leading", "ready", "ready"])
        # And so do the commands of the command line
        result = run(
            server,
            *("skynet.cli", "generate", "--raw", "--json"),
            *("--max-tokens", str(NEW), letters(tiny.prompts[1])),
        )
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        assert answer["token_ids"] == tiny.tokens[1]
        status = json.loads(run(server, "skynet.cli", "status", "--json").stdout)
        assert (status["plan"]["epoch"], status["missing"]) == (1, [])
        assert [stage["layers"] for stage in status["plan"]["stages"]] == [[0, first.num_layers]]
        # When it is split again into another shape, while a request runs
        running = user.submit_prompt(tiny.prompts[2], max_tokens=400)
        next(running.tokens(timeout=60))
        skysplit(str(tiny.path), 1, 1, dtype="float32", url=server.url)
        # Then the request goes on, and the answers are the same
        assert running.get(timeout=60).token_ids[:NEW] == tiny.tokens[2]
        generations = user.submit_prompts(tiny.prompts, max_tokens=NEW)
        assert [g.get(timeout=60).token_ids for g in generations] == tiny.tokens
        wait_for("one that stands by", lambda: states() == ["leading", "ready", "spare"])
    # And a worker that gets SIGTERM returns its lease
    assert members(client) == {}
    assert client.exists(keys.engine_key()) == 0


def test_requests_wait_for_workers_that_come_later(
    server: EmbeddedServer, client: redis.Redis, user: Client, tiny: Tiny, tmp_path: Path
) -> None:
    # Given a model that is split, requests for it, and no workers
    skysplit(str(tiny.path), 1, 1, dtype="float32", url=server.url)
    generations = user.submit_prompts(tiny.prompts, max_tokens=NEW)
    status = json.loads(run(server, "skynet.cli", "status", "--json").stdout)
    assert status["missing"] == ["stage0.shard0", "orchestrator"]
    assert status["requests"]["open"] == 3
    # When one of their messages is lost, and workers come
    client.rpop(keys.queue_key(keys.ORCHESTRATOR_QUEUE))
    with ExitStack() as stack:
        for place in ("orchestrator", "stage0.shard0"):
            stack.enter_context(
                command(
                    *("celery", "-A", "skynet", "worker", "-Q", place),
                    environment={"SKYNET_REDIS_URL": server.url},
                    log=tmp_path / f"{place}.log",
                    cwd=tmp_path,
                )
            )
        # Then all are answered
        assert [g.get(timeout=60).token_ids for g in generations] == tiny.tokens


def test_workers_without_a_place_are_given_one(
    server: EmbeddedServer, user: Client, client: redis.Redis, tiny: Tiny, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        # Given workers that take any place, one of them by `skynet worker`, and an orchestrator
        words = ("celery", "-A", "skynet", "worker")
        for number, one in enumerate(
            (words, ("skynet.cli", "worker"), (*words, "-Q", "orchestrator"))
        ):
            log = tmp_path / f"{number}.log"
            environment = {"SKYNET_REDIS_URL": server.url}
            stack.enter_context(command(*one, environment=environment, log=log, cwd=tmp_path))
        # When a model is split / Then they compute it, each at an address and its queue
        skysplit(str(tiny.path), 1, 2, dtype="float32", url=server.url)
        generations = user.submit_prompts(tiny.prompts, max_tokens=NEW)
        assert [g.get(timeout=60).token_ids for g in generations] == tiny.tokens
        placed = {m.address: m.queue for m in Members(client, 6).all() if m.state == "ready"}
        assert placed == {"stage0.shard0": "stage0.shard0", "stage0.shard1": "stage0.shard1"}
        # And `skynet worker` has shown its settings, and no password
        shown = (tmp_path / "1.log").read_text()
        assert "celery -A skynet worker" in shown
        assert "any place" in shown
        # And a rebalance can be requested
        result = run(server, "skynet.cli", "rebalance")
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("queues", "message"),
    [
        (["-Q", "nonsense"], "'nonsense' is not a queue of SkyNet: use -Q stage0.shard1"),
        (["-Q", "stage0.shard01"], "'stage0.shard01' is not a queue"),
        (["-Q", "stage0.shard0,stage0.shard1"], "has one place"),
    ],
    ids=str,
)
def test_a_worker_for_an_invalid_place_is_refused(
    server: EmbeddedServer, queues: list[str], message: str
) -> None:
    # Given queues that are no place / When a worker is started
    result = run(server, "celery", "-A", "skynet", "worker", *queues)
    # Then it ends with a line that says what to do
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
