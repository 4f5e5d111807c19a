"""Any client may set a target; only the leader writes plans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from chord_cases import tiny_plan

from skynet.errors import Fenced, NoModel
from skynet.store.leader import Leadership
from skynet.store.plans import Plans
from skynet.store.targets import Target, Targets
from skynet.wire import keys

PLAN = tiny_plan()
TARGET = Target.of(PLAN)


@pytest.fixture
def leader(client: redis.Redis) -> Leadership:
    leader = Leadership(client, "a", 60)
    leader.acquire()
    return leader


def test_a_target_is_the_layout_asked_for() -> None:
    # Given a plan / Then its target has its shape, or leaves it open
    assert (TARGET.model, TARGET.stages, TARGET.shards, TARGET.fixed) == ("d", 2, 2, False)
    assert (TARGET.num_slots, TARGET.slot_tokens) == (PLAN.num_slots, PLAN.slot_tokens)
    assert Target.of(replace(PLAN, kv_dtype="q8")).kv_dtype == "q8"
    anything = Target.of(PLAN, fixed=True, any_shape=True)
    assert (anything.stages, anything.shards, anything.fixed) == (None, None, True)
    rounded = Target.of(replace(PLAN, dtype="int8"))
    assert [Target.from_json(each.to_json()) for each in (anything, rounded)] == [anything, rounded]


def test_the_last_target_counts_and_has_a_number(client: redis.Redis) -> None:
    # Given nothing asked for
    targets = Targets(client)
    assert targets.current() is None
    with pytest.raises(NoModel, match="skynet split"):
        targets.require()
    # When two are asked for, the second like the first
    first, second = targets.ask(TARGET), targets.ask(TARGET)
    # Then the second is in force, and another than the first
    assert targets.require() == second
    assert second.revision > first.revision
    assert replace(second, revision=first.revision) == first


def test_a_target_is_restored_only_where_there_is_none(client: redis.Redis) -> None:
    # Given a target that Redis has forgotten
    targets = Targets(client)
    first = targets.ask(TARGET)
    client.delete(keys.target_key())
    # When it is restored / Then it is in force, as it was
    targets.restore(first)
    assert targets.current() == first
    # But not over another that was asked for meanwhile
    second = targets.ask(replace(TARGET, stages=1))
    targets.restore(first)
    assert targets.current() == second


def test_a_rebalance_is_taken_once_and_expires(client: redis.Redis) -> None:
    # Given two clients that ask for a rebalance
    plans = Plans(client)
    assert not plans.take_rebalance()
    plans.ask_rebalance()
    plans.ask_rebalance()
    # When / Then it is taken once, and would have expired
    assert 0 < int(client.ttl(keys.rebalance_key())) <= 60  # type: ignore[arg-type]
    assert plans.take_rebalance()
    assert not plans.take_rebalance()


def test_the_leader_prepares_and_publishes_plans(client: redis.Redis, leader: Leadership) -> None:
    # Given a plan under its number, which is not in force by that
    plans = Plans(client)
    plan = plans.number(PLAN, leader.fence)
    assert plans.current() is None
    # When it is prepared / Then members see it beside the one in force
    plans.prepare(plan, leader.fence)
    assert plans.texts() == (None, plan.to_json().encode())
    # And when it is published, nothing is being prepared any more
    plans.publish(plan, leader.fence)
    assert plans.current() == plan
    assert plans.texts() == (plan.to_json().encode(), None)
    # And the next one has a greater number
    assert plans.number(PLAN, leader.fence).epoch > plan.epoch


def test_a_deposed_leader_writes_no_plan(client: redis.Redis, leader: Leadership) -> None:
    # Given a plan of a leader whose lease has passed to another
    plans = Plans(client)
    plan, old = plans.number(PLAN, leader.fence), leader.fence
    leader.resign()
    other = Leadership(client, "b", 60)
    other.acquire()
    epoch = client.get(keys.epoch_key())
    # When it writes / Then nothing is written, not even a number
    for write in (plans.number, plans.prepare, plans.publish):
        with pytest.raises(Fenced):
            write(plan, old)
    assert plans.texts() == (None, None)
    assert client.get(keys.epoch_key()) == epoch


def test_a_new_plan_empties_the_queues_of_all_addresses(
    client: redis.Redis, leader: Leadership
) -> None:
    # Given messages at addresses of a plan in force, of the next one, and of neither
    plans = Plans(client)
    before = plans.number(tiny_plan(2, 1), leader.fence)
    after = plans.number(tiny_plan(1, 2), leader.fence)
    queues = ("stage0.shard0", "stage1.shard0", "stage0.shard1", "stage7.shard0")
    for queue in (*queues, keys.ORCHESTRATOR_QUEUE):
        client.lpush(keys.queue_key(queue), "a message")
    # When the next one is put in force
    plans.publish(after, leader.fence, before)
    # Then what lay at either's addresses is gone
    everything = (*queues, keys.ORCHESTRATOR_QUEUE)
    left = {queue for queue in everything if client.exists(keys.queue_key(queue))}
    assert left == {"stage7.shard0", keys.ORCHESTRATOR_QUEUE}


def test_epochs_are_later_than_any_that_is_known(client: redis.Redis, leader: Leadership) -> None:
    # Given a Redis that knows of no plan, and an orchestrator that knows of the 41st
    plans = Plans(client)
    # When plans are numbered / Then they go on from there
    assert plans.number(PLAN, leader.fence, known=41).epoch == 42
    assert plans.number(PLAN, leader.fence).epoch == 43


def test_a_preparation_that_is_over_is_forgotten(client: redis.Redis, leader: Leadership) -> None:
    # Given a plan that is being prepared
    plans = Plans(client)
    plans.prepare(plans.number(PLAN, leader.fence), leader.fence)
    assert plans.texts()[1] is not None
    # When another than the leader would end that / Then it cannot
    with pytest.raises(Fenced):
        plans.forget_next("9:other")
    # And when the leader does, it is gone
    plans.forget_next(leader.fence)
    assert plans.texts() == (None, None)
