"""Leases: a member that renews stays, one that does not is gone."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict

import pytest
import redis
from waiting import wait_for

from skynet.local.server import EmbeddedServer
from skynet.store.connection import connect
from skynet.store.members import Member, Members
from skynet.wire import keys


def member(node: str, address: str) -> Member:
    return Member(node, node, address, "here", 7, "ready", epoch=3, weight_bytes=5)


def test_members_come_by_address_with_what_they_told(client: redis.Redis) -> None:
    # Given members that came in another order
    members = Members(client, lease_s=60)
    places = {"c": "stage1.shard0", "d": "", "b": "stage0.shard1", "a": "stage0.shard1"}
    for node, address in places.items():
        members.renew(member(node, address))
    # When all are listed
    alive = members.all()
    # Then they are sorted by address and arrival, and as they described themselves
    assert [(m.address, m.node) for m in alive] == [
        ("stage0.shard1", "b"),
        ("stage0.shard1", "a"),
        ("stage1.shard0", "c"),
        ("", "d"),
    ]
    assert (alive[0].epoch, alive[0].weight_bytes, alive[0].state) == (3, 5, "ready")
    assert alive[0].renewed <= time.time()


def test_a_lease_that_is_not_renewed_runs_out(client: redis.Redis) -> None:
    # Given a short lease and a long one
    Members(client, lease_s=0.2).renew(member("short", "stage0.shard0"))
    members = Members(client, lease_s=60)
    members.renew(member("long", "stage0.shard1"))
    # When time goes by without a renewal
    # Then only the long one is left
    wait_for("one lease left", lambda: [m.node for m in members.all()] == ["long"])


def test_a_leaving_member_is_gone_at_once(client: redis.Redis) -> None:
    # Given two members
    members = Members(client, lease_s=60)
    members.renew(member("a", "stage0.shard0"))
    members.renew(member("b", "stage0.shard1"))
    # When one leaves, also twice
    members.leave("a")
    members.leave("a")
    # Then the other is left, and no key of the first
    assert [m.node for m in members.all()] == ["b"]
    assert client.exists(keys.member_key("a")) == 0


def test_expired_members_are_removed(client: redis.Redis) -> None:
    # Given a node that died long ago
    members = Members(client, lease_s=60)
    client.zadd(keys.members_key(), {"ancient": time.time() - 10_000})
    # When another renews, and the members are listed
    members.renew(member("a", "stage0.shard0"))
    assert [m.node for m in members.all()] == ["a"]
    # Then its name is forgotten
    assert client.zrange(keys.members_key(), 0, -1) == [b"a"]


def test_a_renewal_keeps_the_arrival_and_the_shortest_round_trip(client: redis.Redis) -> None:
    # Given a member that has come, and whose round trip was once short
    members, one = Members(client, lease_s=60), member("a", "stage0.shard0")
    members.renew(one)
    joined = one.joined
    assert joined > 0
    assert one.round_trip_s > 0
    one.round_trip_s = 1e-9
    # When it renews
    members.renew(one)
    # Then it came when it came, by Redis's clock, and the shortest trip counts
    (lease,) = members.all()
    assert (lease.joined, lease.round_trip_s) == (joined, 1e-9)
    assert lease.renewed >= joined


def test_a_connection_that_closes_is_seen_before_the_lease_runs_out(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given a member with a known connection, and one without
    members = Members(client, lease_s=60)
    connection = connect(server.url, single_connection=True)
    Members(connection, lease_s=60).renew(member("a", "stage0.shard0"))
    client.set(keys.member_key("b"), json.dumps(asdict(member("b", "stage0.shard1"))))
    client.zadd(keys.members_key(), {"b": time.time()})
    alive = members.all()
    assert [m.connection > 0 for m in alive] == [True, False]
    assert members.broken(alive) == set()
    # When its process ends
    connection.close()
    # Then Redis tells, though the lease still holds; of the other nothing is known
    wait_for("a broken connection", lambda: members.broken(alive) == {"a"})
    assert [m.node for m in members.all()] == ["a", "b"]


def test_a_member_that_reconnects_has_a_new_connection_at_once(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    # Given a member whose connection is cut
    members, one = Members(client, lease_s=60), member("a", "stage0.shard0")
    connection = connect(server.url, single_connection=True)
    members_of_one = Members(connection, lease_s=60)
    members_of_one.renew(one)
    before = one.connection
    client.client_kill_filter(_id=str(before))
    # When it renews, over the next connection that its client opens
    with suppress(redis.ConnectionError):
        members_of_one.renew(one)
    members_of_one.renew(one)
    # Then its lease has the new number, which is not broken
    (lease,) = members.all()
    assert lease.connection == one.connection != before
    assert members.broken([lease]) == set()
    connection.close()


def test_a_redis_that_forbids_client_list_leaves_it_to_the_leases(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a managed Redis
    def forbidden(**_: object) -> None:
        raise redis.ResponseError("NOPERM this user has no permissions to run 'client|list'")

    monkeypatch.setattr(client, "client_list", forbidden)
    members, one = Members(client, lease_s=60), member("a", "stage0.shard0")
    one.connection = 10**9
    # When broken connections are listed / Then there are none
    assert members.broken([one]) == set()


def test_fields_of_a_later_version_are_passed_over(client: redis.Redis) -> None:
    # Given a member of a later SkyNet, which tells more
    text = json.dumps(asdict(member("a", "stage0.shard0")) | {"mood": "good"})
    # When it is read / Then the rest is understood
    assert Member.from_json(text.encode()).address == "stage0.shard0"
