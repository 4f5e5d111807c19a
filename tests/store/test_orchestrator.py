"""The orchestrator's runtime on a real Redis, without Celery's worker and without shards."""

from __future__ import annotations

import pytest
import redis
from orchestrator_cases import (
    Shards,
    ask,
    bring_up,
    parts,
    sent_steps,
    stage_model,
    submit,
    watch,
)

from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.store.events import Events
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.wire import keys

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


# -- from a target to answers ----------------------------------------------------------------------


def test_a_target_becomes_a_plan_when_there_are_workers_for_it(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a target whose workers are not all there
    shards.die("stage1.shard0")
    watch(runtime)
    # Then there is no plan, and the status names the missing workers
    assert Plans(client).current() is None
    assert runtime.status()["state"] == "waiting for stage1.shard0"
    # When it comes
    shards.join("late")
    watch(runtime)
    # Then the plan is in force, and the engine waits until all have taken it
    plan = Plans(client).current()
    assert plan is not None
    assert plan.workers == ("stage0.shard0", "stage0.shard1", "late", "stage1.shard1")
    assert not runtime.status()["state"].startswith("ready")
    shards.follow()
    watch(runtime)
    assert runtime.status()["state"] == "ready"
    kinds = {event.kind for event in Events(client).latest(20)}
    assert {"leader", "joined", "plan", "ready"} <= kinds


def test_a_request_without_a_message_is_swept_and_answered(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a plan in force, and a record whose message was lost
    plan = bring_up(runtime, shards)
    submit(client, "r1")
    # When the orchestrator looks, and three steps come back
    watch(runtime)
    for token in (11, 12, 13):
        ((epoch, step),) = sent_steps(client)
        assert epoch == plan.epoch
        runtime.messages.finish_step(parts(token), epoch, step, 0.0)
    # Then the engine's report has the rate of its tokens
    runtime.status()
    report = runtime.status()
    assert report["tokens"] == 3
    assert report["tokens_per_s"] > 0
    assert (report["prompt_tokens"], report["cached_tokens"]) == (3, 0)
    # And the request is over, in the record, in the stream and as Celery's result
    requests = Requests(client, 1000)
    assert [token.id for token in requests.emitted("r1")] == [11, 12, 13]
    assert requests.open_ids() == []
    result = runtime.context.app.AsyncResult("r1")
    assert result.state == "SUCCESS"
    assert result.result["token_ids"] == [11, 12, 13]
    assert (result.result["prompt_tokens"], result.result["finish_reason"]) == (3, "length")
    assert result.result["cached_tokens"] == 0


def test_the_second_of_two_equal_prompts_continues_after_the_first(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request that is answered
    bring_up(runtime, shards)
    prompt = tuple(range(30))
    submit(client, "r1", prompt=prompt, max_tokens=1)
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    # When its prompt comes again
    submit(client, "r2", prompt=prompt, max_tokens=1)
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    # Then its result and the report have the tokens that were not computed
    assert runtime.context.app.AsyncResult("r2").result["cached_tokens"] == 29
    assert runtime.status()["cached_tokens"] == 29


def test_the_end_id_of_the_config_ends_an_answer(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a model whose answers end with token 2
    bring_up(runtime, shards)
    submit(client, "r1", max_tokens=50)
    watch(runtime)
    # When that one comes
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(2), epoch, step, 0.0)
    # Then it is over
    assert runtime.context.app.AsyncResult("r1").result["finish_reason"] == "stop"
    assert sent_steps(client) == []


def test_a_request_for_the_model_that_was_just_asked_for_waits_for_it(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a plan in force, and another model that is asked for
    bring_up(runtime, shards)
    stage_model(client, "next")
    ask(client, model="next", fixed=False)
    # When a request for it comes before the leader has seen that
    submit(client, "r1", model="next")
    runtime.messages.accept("r1")
    # Then it is neither refused nor run with the model in force
    assert Requests(client, 1000).open_ids() == ["r1"]
    assert sent_steps(client) == []
    # And it is accepted once the leader serves its model
    watch(runtime)
    service = runtime.leader.service
    assert service is not None
    assert list(service.engine.sequences) == ["r1"]


def test_a_request_for_another_model_is_refused(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request whose token ids belong to a model that was replaced meanwhile
    submit(client, "old", model="another")
    # When a plan of this model is in force
    bring_up(runtime, shards)
    # Then it ends with an error, and no step was sent for it
    assert Requests(client, 1000).open_ids() == []
    assert "another model" in str(runtime.context.app.AsyncResult("old").result)
    assert sent_steps(client) == []


def test_a_message_whose_record_is_gone_is_forgotten(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given an open id without a record
    bring_up(runtime, shards)
    client.zadd(keys.open_requests_key(), {"ghost": 1})
    # When its message comes
    runtime.messages.accept("ghost")
    # Then nothing runs and nothing is open
    assert sent_steps(client) == []
    assert Requests(client, 1000).open_ids() == []


# -- steps and shards that are lost ----------------------------------------------------------------


def test_a_failed_step_is_replayed_under_a_new_epoch(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request with a token and a step in flight
    old = bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    ((epoch, step),) = sent_steps(client)
    # When a shard fails, and the result of the lost step comes all the same
    runtime.messages.fail_step(epoch, step, "PeerLost", "stage0.shard1 was too late")
    new = bring_up(runtime, shards)
    runtime.messages.finish_step(parts(99), epoch, step, 0.0)
    # Then the same plan goes on as another, prompt and answer so far as one prefill
    assert new.epoch > old.epoch
    assert (new.stages, new.workers) == (old.stages, old.workers)
    ((epoch, step),) = sent_steps(client)
    assert epoch == new.epoch
    assert runtime.leader.service is not None
    (row,) = runtime.leader.service.engine.in_flight[step].step.rows
    assert (row.start, row.tokens) == (0, (1, 5, 7, 11))
    # And the request ends as if nothing had happened
    runtime.messages.finish_step(parts(12), epoch, step, 0.0)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(13), epoch, step, 0.0)
    assert runtime.context.app.AsyncResult("r1").result["token_ids"] == [11, 12, 13]
    causes = [event.text for event in Events(client).latest(20) if event.kind == "plan"]
    assert "stage0.shard1 was too late" in causes[-1]


def test_a_request_that_makes_shards_fail_by_itself_ends_with_their_error(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request on which a shard raises each time
    bring_up(runtime, shards)
    submit(client, "bad")
    watch(runtime)
    # When it has been tried three times, alone
    for _ in range(3):
        ((epoch, step),) = sent_steps(client)
        runtime.messages.fail_step(epoch, step, "ShardFailed", "stage0.shard1: no such number")
        bring_up(runtime, shards)
    # Then it ends with the shard's error
    record = Requests(client, 1000).read("bad")
    assert record is not None
    assert record.end is not None
    assert record.end["error"] == "ShardFailed"
    assert "no such number" in record.end["message"]
    assert sent_steps(client) == []


def test_a_request_with_nan_ends_without_another_plan(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request in the step of another
    plan = bring_up(runtime, shards)
    submit(client, "bad")
    submit(client, "good")
    watch(runtime)
    running = {}
    # When shards find NaN in its rows, in the first step and alone
    for _ in range(3):
        for epoch, step in sent_steps(client):
            assert runtime.leader.service is not None
            batch = runtime.leader.service.engine.in_flight[step].batch
            rows = [at for at, (sequence, _) in enumerate(batch) if sequence.id == "bad"]
            if rows:
                message = "stage0.shard1: 3 NaN"
                runtime.messages.fail_step(epoch, step, "NotFinite", message, rows)
            else:
                running[step] = epoch
    # Then it ends with their error, and the other goes on under the same plan
    record = Requests(client, 1000).read("bad")
    assert record is not None
    assert record.end is not None
    assert (record.end["error"], record.end["message"]) == ("NotFinite", "stage0.shard1: 3 NaN")
    assert set(running.values()) == {plan.epoch}
    watch(runtime)
    assert runtime.leader.service.engine.ready
    assert runtime.leader.service.engine.plan.epoch == plan.epoch


def test_a_lost_shard_is_waited_for_and_its_successor_replays(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request in flight in a shape that is fixed
    plan = bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    sent_steps(client)
    # When a shard's lease is gone, and a request comes
    shards.die("stage1.shard1")
    submit(client, "r2")
    watch(runtime)
    # Then no request ends; both wait for the place, which the status names
    assert Requests(client, 1000).open_ids() == ["r1", "r2"]
    assert runtime.status()["state"] == "waiting for stage1.shard1"
    assert sent_steps(client) == []
    # And when there is another worker, it takes the place, and both run
    shards.join("spare")
    new = bring_up(runtime, shards)
    assert new.epoch > plan.epoch
    assert new.workers[3] == "spare"
    assert runtime.leader.service is not None
    steps = [
        runtime.leader.service.engine.in_flight[number].step for _, number in sent_steps(client)
    ]
    rows = [row for step in steps for row in step.rows]
    assert [(row.start, row.tokens) for row in rows] == [(0, (1, 5, 7)), (0, (1, 5, 7))]


def test_without_a_successor_a_smaller_shape_goes_on(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a shape that is not fixed, a request in flight, and workers that take any place
    for name in tuple(shards.live):
        shards.die(name)
    for number in range(4):
        shards.join(f"worker{number}")
    ask(client, fixed=False)
    bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    sent_steps(client)
    # When one dies and none takes its place
    shards.die("worker3")
    plan = bring_up(runtime, shards)
    # Then the others go on without it
    assert len(plan.workers) <= 3
    assert "worker3" not in plan.workers
    assert [epoch for epoch, _ in sent_steps(client)] == [plan.epoch]


def test_another_shape_of_the_same_model_keeps_the_requests(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request with a token in flight
    bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    # When another shape is asked for
    ask(client, stages=1, shards=2)
    watch(runtime)
    # Then the step in flight ends first
    assert runtime.leader.service is not None
    assert runtime.leader.service.engine.ready
    runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    assert sent_steps(client) == []
    new = bring_up(runtime, shards)
    # And the request goes on in the new one
    assert new.shape == (1, 2)
    ((epoch, step),) = sent_steps(client)
    assert epoch == new.epoch
    (row,) = runtime.leader.service.engine.in_flight[step].step.rows
    assert (row.start, row.tokens) == (0, (1, 5, 7, 11))


def test_a_redis_that_was_away_means_a_new_epoch(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a request in flight
    old = bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    sent_steps(client)

    def away() -> None:
        raise redis.ConnectionError("connection refused")

    # When Redis does not answer for some ticks
    with monkeypatch.context() as broken:
        broken.setattr(runtime.context.targets, "current", away)
        watch(runtime)
        watch(runtime)
    # Then the step in flight is sent again under another epoch
    new = bring_up(runtime, shards)
    assert new.epoch > old.epoch
    assert [epoch for epoch, _ in sent_steps(client)] == [new.epoch]
    assert "redis" in [event.kind for event in Events(client).latest(20)]
