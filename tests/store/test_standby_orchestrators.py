"""Several orchestrators on a real Redis: the leader, stale leaders, and how one leaves."""

from __future__ import annotations

from contextlib import suppress

import pytest
import redis
from orchestrator_cases import (
    MakeRuntime,
    Shards,
    ask,
    beat,
    bring_up,
    in_queue,
    parts,
    sent_steps,
    stage_model,
    submit,
    watch,
)
from waiting import wait_for

from skynet.errors import Fenced, RequestLost
from skynet.orchestrator.leader import LEADING, STANDBY
from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.request.record import Token
from skynet.store.leader import leader_of
from skynet.store.members import Members
from skynet.store.requests import Requests
from skynet.wire import keys

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def test_one_leads_and_the_other_stands_by(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards
) -> None:
    # Given one that leads
    bring_up(runtime, shards)
    # When another starts
    standby = make_runtime()
    beat(standby)
    watch(standby)
    # Then it consumes nothing, and would make nothing of a message
    assert (runtime.member.state, standby.member.state) == (LEADING, STANDBY)
    assert runtime.leader.consumer.queues == {keys.ORCHESTRATOR_QUEUE}
    assert standby.leader.consumer.queues == set()
    assert standby.leader.service is None


def test_a_standby_goes_on_where_the_leader_stopped(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader with requests: one in mid-answer, one to be cancelled, one whose last token
    # was written and its end was not
    old = bring_up(runtime, shards)
    requests = Requests(client, 1000)
    for name in ("middle", "cancel", "last"):
        submit(client, name)
    requests.writer.append([("middle", Token(0, 11, ""))])
    requests.ask_cancel("cancel")
    for index, token in enumerate((11, 12, 13)):
        requests.writer.append([("last", Token(index, token, ""))])
    standby = make_runtime()
    beat(standby)
    assert not standby.leadership.leads
    # When the leader is gone
    runtime.leadership.resign()
    beat(standby)
    new = bring_up(standby, shards)
    # Then the last is answered, the cancelled one ended, and the other goes on
    assert standby.context.app.AsyncResult("last").result["token_ids"] == [11, 12, 13]
    assert standby.context.app.AsyncResult("cancel").state == "REVOKED"
    assert requests.open_ids() == ["middle"]
    # And under a new epoch, so that what the other sent is stale
    assert new.epoch > old.epoch
    ((epoch, step),) = sent_steps(client)
    assert epoch == new.epoch
    standby.messages.finish_step(parts(12), epoch, step, 0.0)
    assert [token.id for token in requests.emitted("middle")] == [11, 12]


def test_a_deposed_leader_writes_nothing(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader that was stopped with a step in flight, while another took the lead
    bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    client.delete(keys.leader_key())  # its lease has run out
    other = make_runtime()
    beat(other)
    assert leader_of(client) == other.member.id
    plan_before = client.get(keys.plan_key())
    # When it wakes up, with the result of its step and work to do
    with suppress(Fenced):
        runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    watch(runtime)
    watch(runtime)
    # Then it has written no token, sent no step and made no plan, and knows that it does not lead
    assert [token.id for token in Requests(client, 1000).emitted("r1")] == []
    assert sent_steps(client) == []
    assert client.get(keys.plan_key()) == plan_before
    beat(runtime)
    watch(runtime)
    assert runtime.leader.service is None
    assert runtime.member.state == STANDBY
    assert runtime.leader.consumer.queues == set()


def test_a_deposed_leader_does_not_fail_a_request_it_is_sent(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader that was stopped, while another took the lead
    bring_up(runtime, shards)
    client.delete(keys.leader_key())
    beat(make_runtime())
    # When it takes a message of a request that it would end at once
    submit(client, "old", model="another")
    runtime.on_message("accept", "old")
    # Then the task goes well: were an error raised, Celery would store it as the result
    assert Requests(client, 1000).open_ids() == ["old"]


def test_a_redis_that_is_away_does_not_fail_a_request_that_comes(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a message of a request, and a Redis that does not answer just now
    bring_up(runtime, shards)
    submit(client, "r1")

    def away(request_id: str) -> None:
        raise redis.ConnectionError("connection refused")

    with monkeypatch.context() as broken:
        broken.setattr(runtime.context.requests, "read", away)
        # When it is accepted / Then no error leaves the task
        runtime.on_message("accept", "r1")
    # And the sweep finds the record, under a new epoch
    bring_up(runtime, shards)
    watch(runtime)
    assert len(sent_steps(client)) == 1


@pytest.mark.parametrize("task", [keys.FINISH_STEP_TASK, keys.FAIL_STEP_TASK])
def test_a_message_of_the_next_leaders_plan_is_given_back(
    runtime: OrchestratorRuntime,
    make_runtime: MakeRuntime,
    shards: Shards,
    client: redis.Redis,
    task: str,
) -> None:
    # Given a leader that was stopped while another took the lead and made a plan
    old = bring_up(runtime, shards)
    client.delete(keys.leader_key())
    other = make_runtime()
    beat(other)
    new = bring_up(other, shards)
    assert new.epoch > old.epoch
    # When it wakes up with a message for the other in its hands
    if task == keys.FINISH_STEP_TASK:
        runtime.messages.finish_step([b"part"], new.epoch, 0, 0.5)
        expected = [task, [[b"part"], new.epoch, 0, 0, 0.5, ""]]
    else:
        runtime.messages.fail_step(new.epoch, 0, "NotFinite", "late", [1])
        expected = [task, [new.epoch, 0, "NotFinite", "late", [1], ""]]
    # Then it is back in the queue, and this one steps down
    assert in_queue(client) == [expected]
    assert runtime.leader.service is None
    # And the other drops it, since that step is not in flight
    assert other.leader.service is not None
    assert not other.leader.service.plan_controller.switch.broken


def test_a_message_of_an_old_leaders_plan_changes_nothing(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader
    plan = bring_up(runtime, shards)
    # When results of plans that are over, or of none, come
    for epoch in (plan.epoch - 1, plan.epoch + 5):
        runtime.messages.finish_step(parts(11), epoch, 0, 0.0)
        runtime.messages.fail_step(epoch, 0, "PeerLost", "late")
    # Then it leads on, with the same plan, and gives nothing back
    watch(runtime)
    assert runtime.leader.service is not None
    assert runtime.leader.service.engine.ready
    assert in_queue(client) == []


def test_a_redis_without_its_data_fails_running_requests(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request in flight
    old = bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    assert len(sent_steps(client)) == 1
    # When Redis has started again without its data, and the lease is to be renewed
    client.flushall()
    beat(runtime)
    watch(runtime)
    # Then the client of the request is told
    result = runtime.context.app.AsyncResult("r1")
    assert result.state == "FAILURE"
    assert isinstance(result.result, RequestLost)
    assert "submit it again" in str(result.result)
    assert Requests(client, 1000).open_ids() == []
    # And when the model is there again, the next plan is not taken for an old one
    stage_model(client)
    ask(client)
    shards.join_all()
    assert bring_up(runtime, shards).epoch > old.epoch


# -- leaving ---------------------------------------------------------------------------------------


def test_a_leaving_leader_finishes_its_step_first(
    runtime: OrchestratorRuntime, make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a step in flight
    bring_up(runtime, shards)
    submit(client, "r1", max_tokens=50)
    watch(runtime)
    steps = sent_steps(client)
    assert len(steps) == 1
    # When the leader is told to leave
    runtime.leave()
    runtime.tick()
    assert not runtime.left
    num_tokens = 0

    def has_left() -> bool:
        nonlocal steps, num_tokens
        for epoch, step in steps:
            runtime.messages.finish_step(parts(11), epoch, step, 0.0)
            num_tokens += 1
        steps = sent_steps(client)
        runtime.tick()
        return runtime.left

    wait_for("the leader has left", has_left)
    # Then it was at a step boundary, with all tokens written, and lets another lead
    assert runtime.leader.service is not None
    assert not runtime.leader.service.engine.in_flight
    assert sent_steps(client) == []
    assert [token.id for token in Requests(client, 1000).emitted("r1")] == [11] * num_tokens
    beat(runtime)
    assert leader_of(client) == ""
    other = make_runtime()
    beat(other)
    bring_up(other, shards)
    assert len(sent_steps(client)) == 1


def test_a_stopped_orchestrator_gives_its_leases_back(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader that keeps its lease
    runtime.start()
    members = Members(client, 60)
    wait_for("a member", lambda: runtime.member.id in {m.id for m in members.all()})
    bring_up(runtime, shards)
    # When it stops
    runtime.stop()
    # Then it is no member, and there is no leader
    assert runtime.member.id not in {member.id for member in members.all()}
    assert leader_of(client) == ""


def test_a_redis_that_breaks_off_at_a_new_target_is_asked_again(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a target, and a Redis that breaks off after it was read
    ask(client)
    beat(runtime)

    def away() -> None:
        raise redis.ConnectionError("connection reset")

    with monkeypatch.context() as broken:
        broken.setattr(runtime.context.plans, "current", away)
        watch(runtime)
        assert runtime.leader.service is None
    # When it is back / Then the target is followed
    bring_up(runtime, shards)
    assert runtime.leader.service is not None


def test_deadlines_hold_where_there_is_no_model_to_run(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given open requests, and a model that is asked for and gone
    ask(client)
    client.delete(*client.keys("skynet:model:*"))
    for name, timeout in (("late", -1.0), ("early", 100.0), ("cancelled", 100.0)):
        submit(client, name, timeout_s=timeout)
    requests = Requests(client, 1000)
    requests.ask_cancel("cancelled")
    beat(runtime)
    # When the orchestrator looks
    watch(runtime)
    watch(runtime)
    # Then overdue and cancelled requests end with the reason, and the rest waits
    assert requests.open_ids() == ["early"]
    end = requests.wait_end("late", 1)
    assert (end.error, "not staged" in end.message) == ("RequestTimeout", True)
    assert requests.wait_end("cancelled", 1).error == "RequestCancelled"
    assert "not staged" in runtime.status()["state"]


def test_a_record_that_cannot_be_read_ends_and_stops_no_other(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a record with an option that this version does not know, and a good one after it
    bring_up(runtime, shards)
    submit(client, "new")
    client.hset(keys.request_key("new"), "options", '{"stop": [], "unheard_of": 1}')
    submit(client, "good")
    # When they are swept
    watch(runtime)
    # Then the one ends with an error that says so, and the other runs
    requests = Requests(client, 1000)
    assert requests.open_ids() == ["good"]
    assert "unheard_of" in requests.wait_end("new", 1).message
    assert len(sent_steps(client)) == 1
