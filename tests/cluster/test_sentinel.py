"""A cluster behind Redis Sentinel, and the death of the master while requests run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from checkpoints import Tiny
from processes import command, wait_for
from sentinels import SentinelServers

from skynet.client.client import Client
from skynet.client.generation import Generation
from skynet.errors import RequestLost
from skynet.staging.split import skysplit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PLACES = ("stage0.shard0", "stage0.shard1", "orchestrator")
LONG = 150
SAMPLED = {"temperature": 0.9, "seed": 11}


@pytest.fixture
def servers() -> Iterator[SentinelServers]:
    directory = Path(tempfile.mkdtemp(prefix="skynet-test-"))
    servers = SentinelServers(directory)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
        shutil.rmtree(directory)


def begin(client: Client, prompt: list[int]) -> list[Generation]:
    """A greedy and a sampled request, each with a token at least."""
    generations = [
        client.submit_prompt(prompt, max_tokens=LONG, **options)
        for options in ({}, SAMPLED)  # type: ignore[arg-type]
    ]
    for generation in generations:
        next(generation.tokens(timeout=60))
    return generations


def test_a_master_dies_and_requests_go_on(
    servers: SentinelServers, tiny: Tiny, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        # Given a cluster behind three Sentinels, and its undisturbed answers
        environment = {"SKYNET_REDIS_URL": servers.url, "SKYNET_THREADS": "1"}
        workers = [
            stack.enter_context(
                command(
                    *("celery", "-A", "skynet", "worker", "-Q", place),
                    environment=environment,
                    log=tmp_path / f"{place}.log",
                    cwd=tmp_path,
                )
            )
            for place in PLACES
        ]
        skysplit(tiny.path.as_posix(), 1, 2, dtype="float32", num_slots=4, url=servers.url)
        client = Client(servers.url)
        stack.callback(client.close)
        expected = [each.get(timeout=120).token_ids for each in begin(client, tiny.prompts[0])]
        # When the master is killed while requests run
        running = begin(client, tiny.prompts[0])
        servers.wait_for_replica()
        old = servers.kill_master()
        # Then they go on with the same tokens, and no process has ended
        assert [each.get(timeout=120).token_ids for each in running] == expected
        assert [worker.poll() for worker in workers] == [None] * len(PLACES)
        assert_status_names(servers.url)

        # Given the old master as a replica, which loses its link before a request is submitted
        servers.start_replica(old)
        known = begin(client, tiny.prompts[0])
        with redis.Redis(port=servers.replica_port()) as replica:
            replica.execute_command("REPLICAOF", "127.0.0.1", "1")  # where nobody listens
        unknown = begin(client, tiny.prompts[1])
        # When the master dies
        servers.kill_master()
        # Then the requests that the replica knows go on, and the others are lost
        assert [each.get(timeout=120).token_ids for each in known] == expected
        for each in unknown:
            with pytest.raises(RequestLost, match="submit it again"):
                each.get(timeout=120)
        wait_for("no open request", lambda: client.requests.num_open() == 0)
        assert [worker.poll() for worker in workers] == [None] * len(PLACES)


def assert_status_names(url: str) -> None:
    """`skynet status` finds the new master."""
    done = subprocess.run(
        [sys.executable, "-m", "skynet.cli", "status", "--json"],
        env={**os.environ, "SKYNET_REDIS_URL": url},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    members = json.loads(done.stdout)["members"]
    assert {member["address"] for member in members} == set(PLACES)
