"""Real workers that exchange by direct links: seen in the status, killed, and cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import Tiny
from disturbed import Undisturbed, heal, kill, whole, worker_with_a_place
from processes import wait_for

from skynet.client.status import cluster_status
from skynet.exchange.listener import socket_path
from skynet.local.cluster import LocalCluster
from skynet.store.members import READY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def linked(tiny: Tiny) -> Iterator[LocalCluster]:
    """1 stage x 2 shards that take any place, and a spare."""
    with LocalCluster(tiny.path, 1, 2, "float32", "layer", elastic=True, spares=1) as running:
        whole(running)
        yield running


@pytest.fixture(scope="module")
def undisturbed(linked: LocalCluster, tiny: Tiny) -> Undisturbed:
    return Undisturbed(linked, tiny.prompts)


def status(cluster: LocalCluster) -> dict[str, Any]:
    return cluster_status(cluster.client.redis, cluster.url)


def test_links_are_shown_and_a_killed_worker_is_replaced(
    linked: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given a cluster whose two shards have a link
    assert status(linked)["links"][0].startswith("stage 0: unix, ")
    assert not linked.client.redis.pubsub_channels("skynet:x:*")
    # When a shard is killed in the middle of answers
    answers = undisturbed.ask(2)
    kill(linked, worker_with_a_place(linked))
    # Then the answers are those of an undisturbed run, and the spare has a link
    answers.check()
    wait_for("the link", lambda: status(linked)["links"][:1])
    assert status(linked)["links"][0].startswith("stage 0: unix, ")
    heal(linked)


def test_without_a_link_the_next_plan_goes_through_redis(
    linked: LocalCluster, undisturbed: Undisturbed
) -> None:
    # Given workers that no peer can reach: their sockets are gone
    for member in status(linked)["members"]:
        socket_path(member["id"]).unlink(missing_ok=True)
    answers = undisturbed.ask(2)
    # When a link breaks, because one of its ends is killed
    kill(linked, worker_with_a_place(linked))
    # Then the answers are the same, through Redis
    answers.check()
    ready = [member for member in status(linked)["members"] if member["state"] == READY]
    assert [link["kind"] for member in ready for link in member["links"]] == ["redis"]
