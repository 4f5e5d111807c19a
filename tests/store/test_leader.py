"""Leadership: one leader at a time, under a term that is never used again."""

from __future__ import annotations

import itertools

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import wait_for

from skynet.errors import Fenced
from skynet.store.leader import GUARD, Held, Leadership, fenced, leader_of
from skynet.wire import keys


def test_one_leads_until_it_resigns(client: redis.Redis) -> None:
    # Given two candidates for leadership
    first, second = Leadership(client, "a", 60), Leadership(client, "b", 60)
    assert leader_of(client) == ""
    assert first.acquire()
    # When the other tries / Then it does not lead, and knows the leader
    assert not second.acquire()
    assert not second.leads
    assert leader_of(client) == "a"
    assert second.holder() == first.fence == "1:a"
    # And it may when the first has resigned, under the next term
    first.resign()
    assert not first.leads
    assert leader_of(client) == ""
    assert second.acquire()
    assert second.fence == "2:b"


def test_a_lease_that_is_renewed_holds(client: redis.Redis) -> None:
    # Given a lease of which most is over
    leader = Leadership(client, "a", 60)
    leader.acquire()
    client.pexpire(keys.leader_key(), 1000)
    # When it is renewed / Then it is as long as at first
    assert leader.renew() is Held.YES
    assert 30_000 < int(client.pttl(keys.leader_key())) <= 60_000  # type: ignore[arg-type]


def test_a_lease_that_is_not_renewed_passes_on(client: redis.Redis) -> None:
    # Given a leader that is stopped
    first, second = Leadership(client, "a", 0.1), Leadership(client, "b", 60)
    first.acquire()
    # When its lease is over
    wait_for("another leads", second.acquire)
    # Then it has lost it, and cannot have it back
    assert first.renew() is Held.LOST
    first.lose()
    assert not first.acquire()
    assert leader_of(client) == "b"


def test_a_lease_that_ran_out_is_taken_up_again_if_nobody_had_it(client: redis.Redis) -> None:
    # Given a lease that ran out
    leader = Leadership(client, "a", 60)
    leader.acquire()
    client.delete(keys.leader_key())
    # When it is renewed, and no other has led since / Then it holds, under the same fence
    assert leader.renew() is Held.YES
    assert leader.holder() == leader.fence
    # But not if another has, even if that one is gone
    other = Leadership(client, "b", 60)
    client.delete(keys.leader_key())
    other.acquire()
    other.resign()
    assert leader.renew() is Held.LOST
    assert leader.holder() == ""


def test_lost_redis_data_is_distinguished_from_a_lost_lease(client: redis.Redis) -> None:
    # Given a leader of the fourth term, at epoch 9
    leader = Leadership(client, "a", 60)
    client.set(keys.term_key(), 3)
    leader.acquire()
    # When Redis has started again without its data
    client.flushall()
    # Then that is what it says
    assert leader.renew() is Held.WIPED
    # And neither term nor epoch go back
    leader.lose()
    assert leader.acquire(epoch=9)
    assert leader.fence == "5:a"
    assert client.get(keys.epoch_key()) == b"9"


def test_a_new_leader_of_a_wiped_redis_is_a_loss_all_the_same(client: redis.Redis) -> None:
    # Given a leader whose Redis was wiped, and another that leads there, under a smaller term
    leader = Leadership(client, "a", 60)
    client.set(keys.term_key(), 3)
    leader.acquire()
    client.flushall()
    Leadership(client, "b", 60).acquire()
    # When it renews / Then it does not lead
    assert leader.renew() is not Held.YES
    assert leader_of(client) == "b"


def test_an_epoch_that_is_ahead_stays(client: redis.Redis) -> None:
    # Given an epoch beyond what this one knows
    client.set(keys.epoch_key(), 12)
    # When it begins to lead / Then the epoch does not go back
    Leadership(client, "a", 60).acquire(epoch=9)
    assert client.get(keys.epoch_key()) == b"12"


def test_only_the_leader_that_was_meant_is_deposed(client: redis.Redis) -> None:
    # Given a leader that was taken for dead, and has resigned meanwhile for another
    first, second = Leadership(client, "a", 60), Leadership(client, "b", 60)
    first.acquire()
    old = first.fence
    first.resign()
    second.acquire()
    # When it is deposed / Then the other leads on
    first.depose(old)
    assert leader_of(client) == "b"
    # And when that one is deposed, none leads; it is fenced
    first.depose(second.fence)
    assert leader_of(client) == ""
    first.acquire()
    assert second.renew() is Held.LOST


def test_to_resign_twice_takes_nothing_from_another(client: redis.Redis) -> None:
    # Given one that has resigned
    first, second = Leadership(client, "a", 60), Leadership(client, "b", 60)
    first.acquire()
    first.resign()
    second.acquire()
    # When it does again / Then the other leads on
    first.resign()
    assert leader_of(client) == "b"


def test_a_guarded_script_writes_for_the_leader_only(client: redis.Redis) -> None:
    # Given a script that begins with the guard
    script = client.register_script(GUARD + "redis.call('SET', KEYS[2], ARGV[2]); return 1")
    leader = Leadership(client, "a", 60)
    leader.acquire()
    # When the leader, and when tools that check nothing write / Then it is written
    for fence in (leader.fence, ""):
        with fenced():
            script(keys=[keys.leader_key(), "what"], args=[fence, "this"])
        assert client.getdel("what") == b"this"
    # But not by one that has led, nor while there is no leader
    old = leader.fence
    leader.resign()
    with pytest.raises(Fenced), fenced():
        script(keys=[keys.leader_key(), "what"], args=[old, "this"])
    assert client.get("what") is None
    # And other errors stay what they are
    client.set("what", "a text")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"), fenced():
        client.lpush("what", "this")


ACTIONS = ("acquire", "renew", "resign", "expire", "depose", "wipe")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2)), min_size=1, max_size=25)
)
def test_never_two_leaders_and_no_term_of_one_process_twice(
    client: redis.Redis, steps: list[tuple[str, int]]
) -> None:
    # Given three that acquire, renew, resign and depose in any order, while leases run out and
    # Redis loses its data
    client.flushall()
    group = [Leadership(client, name, 60) for name in "abc"]
    terms: dict[str, list[int]] = {name: [] for name in "abc"}
    for action, number in steps:
        one = group[number]
        if action == "acquire" and not one.leads and one.acquire():
            terms[one.member].append(int(one.fence.partition(":")[0]))
        elif action == "renew" and one.leads and one.renew() is not Held.YES:
            one.lose()
        elif action == "resign":
            one.resign()
        elif action == "expire":
            client.delete(keys.leader_key())
        elif action == "depose":
            one.depose(one.holder())
        elif action == "wipe":
            client.flushall()
        # Then at any time at most one has the fence that Redis lets write
        holder = one.holder()
        assert sum(other.fence == holder for other in group if other.leads) <= 1
    # And no process leads under one fence twice
    for numbers in terms.values():
        assert all(a < b for a, b in itertools.pairwise(numbers))
