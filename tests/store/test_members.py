"""Leases: who renews is there, who does not is gone."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import redis

from skynet import names
from skynet.store.members import Member, Members

WAIT_S = 20.0


def member(node: str, address: str) -> Member:
    return Member(node, address, "here", 7, "ready", epoch=3, weight_bytes=5)


def test_members_come_by_address_with_what_they_told(client: redis.Redis) -> None:
    # Given members that came in another order
    members = Members(client, lease_s=60)
    for node, address in (("c", "stage1.shard0"), ("b", "stage0.shard1"), ("a", "stage0.shard1")):
        members.renew(member(node, address))
    # When all are listed
    found = members.all()
    # Then they are sorted, and as they described themselves
    assert [(m.address, m.node) for m in found] == [
        ("stage0.shard1", "a"),
        ("stage0.shard1", "b"),
        ("stage1.shard0", "c"),
    ]
    assert (found[0].epoch, found[0].weight_bytes, found[0].state) == (3, 5, "ready")
    assert found[0].renewed <= time.time()


def test_a_lease_that_is_not_renewed_runs_out(client: redis.Redis) -> None:
    # Given a short lease and a long one
    Members(client, lease_s=0.2).renew(member("short", "stage0.shard0"))
    members = Members(client, lease_s=60)
    members.renew(member("long", "stage0.shard1"))
    # When time goes by without a renewal
    deadline = time.monotonic() + WAIT_S
    while len(members.all()) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    # Then only the long one is left
    assert [m.node for m in members.all()] == ["long"]


def test_who_leaves_is_gone_at_once(client: redis.Redis) -> None:
    # Given two members
    members = Members(client, lease_s=60)
    members.renew(member("a", "stage0.shard0"))
    members.renew(member("b", "stage0.shard1"))
    # When one leaves, also twice
    members.leave("a")
    members.leave("a")
    # Then the other is left, and no key of the first
    assert [m.node for m in members.all()] == ["b"]
    assert client.exists(names.member_key("a")) == 0


def test_the_dead_do_not_pile_up(client: redis.Redis) -> None:
    # Given a node that died long ago
    members = Members(client, lease_s=60)
    client.zadd(names.MEMBERS_KEY, {"ancient": time.time() - 10_000})
    # When another renews, and somebody looks who is there
    members.renew(member("a", "stage0.shard0"))
    assert [m.node for m in members.all()] == ["a"]
    # Then its name is forgotten
    assert client.zrange(names.MEMBERS_KEY, 0, -1) == [b"a"]


def test_fields_of_a_later_version_are_passed_over(client: redis.Redis) -> None:
    # Given a member of a later SkyNet, which tells more
    text = json.dumps(asdict(member("a", "stage0.shard0")) | {"mood": "good"})
    # When it is read / Then the rest is understood
    assert Member.from_json(text.encode()).address == "stage0.shard0"
