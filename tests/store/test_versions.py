"""Processes of several versions on one Redis: kept apart, told why, and requests go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
from orchestrator_cases import (
    TARGET,
    MakeRuntime,
    Shards,
    beat,
    bring_up,
    parts,
    submit,
    watch,
)

from skynet.client.status import cluster_status
from skynet.errors import IncompatibleVersion
from skynet.local.server import EmbeddedServer
from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.planning.plan import Plan
from skynet.request.record import End, Options
from skynet.store.lease import Lease
from skynet.store.members import SPARE, Member, Members
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.targets import Target, Targets
from skynet.wire import keys
from skynet.wire.protocol import PROTOCOL, UNVERSIONED
from skynet.worker.plan_follower import PlanFollower

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
OTHER = PROTOCOL + 1


def in_another_protocol(plan: Plan) -> str:
    """The plan in JSON, with a field that this version does not know."""
    return json.dumps({**json.loads(plan.to_json()), "protocol": OTHER, "new": {}})


def put(client: redis.Redis, name: str, address: str = "", protocol: int = OTHER) -> None:
    """A member of another protocol."""
    member = Member(name, f"{name}@here", address, "here", 7, SPARE, protocol=protocol, speed=5e9)
    Members(client, 60).renew(member)


@pytest.fixture
def follower(runtime: OrchestratorRuntime) -> Iterator[PlanFollower]:
    """Of a worker that a test gives plans to."""
    member = Member("w", "w@here", "", "here", 7, SPARE, speed=5e9)
    made = PlanFollower(Lease(member, 60), lambda place: True)
    yield made
    made.client.close()


def test_a_member_without_a_version_is_from_before(client: redis.Redis) -> None:
    # Given the lease of an older worker, which has no such field
    put(client, "old")
    key = keys.member_key("old")
    lease = json.loads(client.get(key) or b"")
    del lease["protocol"]
    client.set(key, json.dumps(lease))
    # When / Then
    assert [member.protocol for member in Members(client, 60).all()] == [UNVERSIONED]


def test_a_worker_follows_no_plan_of_another_protocol(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    follower: PlanFollower,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a plan of another protocol, which even has a place for the worker
    plan = bring_up(runtime, shards)
    plans = Plans(client)
    theirs = replace(plan, workers=("w", *plan.workers[1:]))
    for epoch in (theirs.epoch, theirs.epoch + 1):
        client.set(keys.plan_key(), in_another_protocol(theirs.with_epoch(epoch)))
        # When the worker looks
        with caplog.at_level(logging.WARNING):
            follower._follow(plans)
        # Then it has no place and says why
        assert (follower.place, follower.member.state) == (None, SPARE)
        assert f"of protocol {OTHER}, this worker speaks {PROTOCOL}" in follower.member.problem
    # And only once in its log
    assert [r.getMessage() for r in caplog.records].count(follower.member.problem) == 1
    # And when a plan of its own protocol is in force, it follows that
    client.set(keys.plan_key(), plan.with_epoch(theirs.epoch + 2).to_json())
    follower._follow(plans)
    assert (follower.member.problem, follower.epoch) == ("", theirs.epoch + 2)


def test_a_leader_starts_anew_after_a_plan_of_another_protocol(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request that runs under a plan of another protocol, whose leader has ended
    plan = bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    runtime.leadership.resign()
    client.set(keys.plan_key(), in_another_protocol(plan))
    assert Plans(client).current() is None
    # When an orchestrator of this one leads, and late parts of the old plan arrive
    new = make_runtime()
    beat(new)
    watch(new)
    new.messages.finish_step([b"of another form"], plan.epoch, 1, 0.0)
    # Then it makes a plan under a later epoch, and the request goes on
    again = bring_up(new, shards)
    assert again.epoch > plan.epoch
    assert set(again.workers) == set(plan.workers)
    step = new.leader.service and next(iter(new.leader.service.engine.in_flight))
    new.messages.finish_step(parts(11), again.epoch, step, 0.0)
    assert [token.id for token in Requests(client, 1000).emitted("r1")] == [11]


def test_the_version_with_more_workers_leads(
    make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given an orchestrator with 4 workers, beside another version's with 5
    runtime = make_runtime()
    put(client, "their orchestrator", keys.ORCHESTRATOR_QUEUE)
    for number in range(5):
        put(client, f"their worker {number}")
    # When nobody leads / Then it stands back
    beat(runtime)
    assert not runtime.leadership.leads
    # And it leads as soon as it has as many workers, or the other is gone
    Members(client, 60).leave("their worker 0")
    beat(runtime)
    assert runtime.leadership.leads
    # And goes on while it has any worker
    for number in range(5):
        put(client, f"their worker {number}")
    for name in list(shards.live)[1:]:
        shards.die(name)
    beat(runtime)
    assert runtime.leadership.leads
    # And hands over when it has none and the other has some
    shards.die(next(iter(shards.live)))
    beat(runtime)
    assert not runtime.leadership.leads
    beat(runtime)
    assert not runtime.leadership.leads
    # But not to workers without an orchestrator
    Members(client, 60).leave("their orchestrator")
    beat(runtime)
    assert runtime.leadership.leads


def test_status_names_members_and_plans_of_another_protocol(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis, server: EmbeddedServer
) -> None:
    # Given a worker of another protocol
    plan = bring_up(runtime, shards)
    put(client, "theirs")
    Members(client, 60).renew(runtime.member)
    # When
    status = cluster_status(client, server.url)
    # Then
    (text,) = status["incompatible"]
    assert text.startswith(f"theirs@here speaks protocol {OTHER}, the leading orchestrator")
    assert (status["plan_problem"], status["missing"]) == ("", [])
    # And when the plan is of another protocol, that is said instead of what is missing
    client.set(keys.plan_key(), in_another_protocol(plan))
    status = cluster_status(client, server.url)
    assert f"of protocol {OTHER}, this command speaks {PROTOCOL}" in status["plan_problem"]
    assert (status["plan"], status["missing"]) == (None, [])


def test_status_names_the_dtypes_in_which_the_plans_shards_exchange_partials(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis, server: EmbeddedServer
) -> None:
    # Given shards of a plan, one of them with another exchange dtype; and a spare with a third
    bring_up(runtime, shards)
    members = Members(client, 60)
    placed = next(member for member in members.all() if member.address == "stage0.shard1")
    members.renew(replace(placed, exchange_dtype="int8"))
    members.renew(replace(placed, id="spare", address="", exchange_dtype="bfloat16"))
    # Then those of the shards are named
    assert cluster_status(client, server.url)["exchange_dtypes"] == ["auto", "int8"]


def test_a_request_of_a_newer_client_works_unless_it_uses_what_is_new(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given records of a newer client: with an option that this version does not know, and without
    bring_up(runtime, shards)
    submit(client, "plain")
    submit(client, "new")
    key = keys.request_key("new")
    options = json.loads(client.hget(key, "options") or b"")
    client.hset(key, "options", json.dumps({**options, "sparkle": 1}))
    # When they are accepted
    watch(runtime)
    # Then one runs, the other ends with an error that names the option
    assert Requests(client, 1000).open_ids() == ["plain"]
    end = Requests(client, 1000).wait_end("new", 5)
    assert end.error == "IncompatibleVersion"
    assert "sparkle: unknown to the orchestrator, which is older than the client" in end.message
    # And a newer orchestrator's end is read by an older client
    later = json.dumps({**json.loads(End(text="x").to_json()), "new": 1})
    assert End.from_json(later) == End(text="x")
    # And options that are not used are not written
    assert json.loads(Options(max_tokens=3).to_json()) == {"max_tokens": 3}


def test_a_target_of_a_newer_version_leaves_the_one_before_in_force(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader that serves a model
    plan = bring_up(runtime, shards)
    # When a newer `skynet split` asks for something that it does not know
    newer = {**json.loads(TARGET.to_json()), "revision": 9, "sparkle": 1}
    client.set(keys.target_key(), json.dumps(newer))
    watch(runtime)
    # Then it says so and goes on
    assert "sparkle in the target: a newer version of SkyNet" in runtime.leader.problem
    assert runtime.leader.epoch == plan.epoch
    with pytest.raises(IncompatibleVersion, match="sparkle"):
        Targets(client).current()
    # And a target of an older version is read
    older = json.loads(TARGET.to_json())
    del older["revision"]
    assert Target.from_json(json.dumps(older)) == TARGET


def test_a_model_staged_in_another_format_is_not_served(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a manifest of another version's format
    key = keys.manifest_key(TARGET.model)
    client.set(key, json.dumps({**json.loads(client.get(key) or b""), "format": 99}))
    # When the leader looks at its target / Then it says what to do
    watch(runtime)
    assert "format 99" in runtime.status()["state"]
    assert "split it again with `skynet split`" in runtime.status()["state"]
