"""Targets are asked for by anybody; plans are written by the leader only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import redis
from chord_cases import tiny_plan

from skynet import names
from skynet.errors import Fenced, NoModel
from skynet.store.leader import Leadership
from skynet.store.plans import Plans, Target

PLAN = tiny_plan()
TARGET = Target.of(PLAN)


@pytest.fixture
def leader(client: redis.Redis) -> Leadership:
    found = Leadership(client, "a", 60)
    found.acquire()
    return found


def test_a_target_is_the_layout_asked_for() -> None:
    # Given a plan / Then its target has its shape, or leaves it open
    assert (TARGET.model, TARGET.stages, TARGET.shards, TARGET.fixed) == ("d", 2, 2, False)
    assert (TARGET.num_slots, TARGET.slot_tokens) == (PLAN.num_slots, PLAN.slot_tokens)
    anything = Target.of(PLAN, fixed=True, any_shape=True)
    assert (anything.stages, anything.shards, anything.fixed) == (None, None, True)
    assert Target.from_json(anything.to_json()) == anything


def test_the_last_target_counts_and_has_a_number(client: redis.Redis) -> None:
    # Given nothing asked for
    plans = Plans(client)
    assert plans.target() is None
    with pytest.raises(NoModel, match="skynet split"):
        plans.require_target()
    # When two are asked for, the second like the first
    first, second = plans.ask(TARGET), plans.ask(TARGET)
    # Then the second is in force, and another than the first
    assert plans.require_target() == second
    assert second.revision > first.revision
    assert replace(second, revision=first.revision) == first


def test_a_target_is_restored_only_where_there_is_none(client: redis.Redis) -> None:
    # Given a target that Redis has forgotten
    plans = Plans(client)
    first = plans.ask(TARGET)
    client.delete(names.TARGET_KEY)
    # When it is restored / Then it is in force, as it was
    plans.restore(first)
    assert plans.target() == first
    # But not over another that was asked for meanwhile
    second = plans.ask(replace(TARGET, stages=1))
    plans.restore(first)
    assert plans.target() == second


def test_a_rebalance_is_asked_once_and_told_once(client: redis.Redis) -> None:
    # Given two people who ask
    plans = Plans(client)
    assert not plans.take_rebalance()
    plans.ask_rebalance()
    plans.ask_rebalance()
    # When / Then it is told once, and would not have waited for ever
    assert 0 < int(client.ttl(names.REBALANCE_KEY)) <= 60  # type: ignore[arg-type]
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


def test_one_that_does_not_lead_any_more_writes_no_plan(
    client: redis.Redis, leader: Leadership
) -> None:
    # Given a plan of a leader whose lease has passed to another
    plans = Plans(client)
    plan, old = plans.number(PLAN, leader.fence), leader.fence
    leader.resign()
    other = Leadership(client, "b", 60)
    other.acquire()
    epoch = client.get(names.EPOCH_KEY)
    # When it writes / Then nothing is written, not even a number
    for write in (plans.number, plans.prepare, plans.publish):
        with pytest.raises(Fenced):
            write(plan, old)
    assert plans.texts() == (None, None)
    assert client.get(names.EPOCH_KEY) == epoch
