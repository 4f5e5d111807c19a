"""Redis answers, and cannot serve for a while: all processes wait, and answers go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from checkpoints import Tiny
from disturbed import Undisturbed
from processes import wait_for

from skynet.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def pair(tiny: Tiny) -> Iterator[LocalCluster]:
    """1 stage x 2 shards and two orchestrators."""
    with LocalCluster(tiny.path, 1, 2, "float32", num_slots=4, orchestrators=2) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(pair: LocalCluster, tiny: Tiny) -> Undisturbed:
    return Undisturbed(pair, tiny.prompts)


def make_replica(client: redis.Redis) -> Callable[[], object]:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")  # where nobody listens
    return lambda: client.execute_command("REPLICAOF", "NO", "ONE")


def fill_up(client: redis.Redis) -> Callable[[], object]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("disturb", "told"),
    [(make_replica, b"it is a replica"), (fill_up, b"its memory is full")],
)
def test_a_redis_that_cannot_serve_for_a_while_is_waited_for(
    pair: LocalCluster,
    undisturbed: Undisturbed,
    disturb: Callable[[redis.Redis], Callable[[], object]],
    told: bytes,
) -> None:
    # Given answers under way
    answers = undisturbed.ask()
    pids = {worker.address: worker.pid for worker in pair.workers}
    # When Redis refuses writes, until every process has met that, and takes them again
    end = disturb(pair.client.redis)
    for worker in pair.workers:
        wait_for(f"{worker.address} to notice", lambda w=worker: told in w.log.read_bytes())
    end()
    # Then all answers are those of the undisturbed run, and no process has ended
    answers.check()
    assert pair.processes.failed() == []
    assert {worker.address: worker.pid for worker in pair.workers} == pids
    for worker in pair.workers:
        assert b"Traceback" not in worker.log.read_bytes(), worker.log.read_text()
