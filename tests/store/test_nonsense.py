"""What another client writes under SkyNet's keys and into its queues: errors by name, no more."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import kombu
import numpy as np
import pytest
import redis
from chord_cases import tiny_plan
from orchestrator_cases import Shards, ask, bring_up, parts, sent_steps, submit, watch
from waiting import wait_for

from skynet.chords.app import SkynetCelery
from skynet.engine.engine import Engine
from skynet.errors import Fenced, RequestLost, WireError
from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.request.record import Options, Record, Token
from skynet.store.events import Events
from skynet.store.foreign import delete_foreign
from skynet.store.leader import Leadership
from skynet.store.members import Member, Members
from skynet.store.plans import Plans
from skynet.store.requests import Requests
from skynet.store.staging import StagingJob
from skynet.store.targets import Targets
from skynet.store.weights import WeightStore
from skynet.wire import codec, keys
from skynet.wire.step import Candidates, Part

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")
NONSENSE = (b"\xff\x00nonsense", b"{}", b"[1]", b"null", b"[" * 3000)


def engine_of(runtime: OrchestratorRuntime) -> Engine:
    assert runtime.leader.service is not None
    return runtime.leader.service.engine


# -- members, counters, events ---------------------------------------------------------------------


def test_a_member_whose_record_cannot_be_read_is_left_out(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a member, and records with nonsense, a negative speed and another member's id
    members = Members(client, 60)
    members.renew(Member("good", "good@here", "stage0.shard0", "here", 7, speed=5e9))
    good = client.get(keys.member_key("good"))
    assert isinstance(good, bytes)
    wrong = [*NONSENSE, good, good.replace(b"5000000000.0", b"-1"), good.replace(b"7", b"1e400")]
    for number, text in enumerate(wrong):
        client.set(keys.member_key(f"bad{number}"), text)
        client.zadd(keys.members_key(), {f"bad{number}": 2e9, b"\xff\xfe": 2e9})
    # When the members are read / Then the good one is there, and the log names the others
    with caplog.at_level(logging.WARNING):
        assert [member.id for member in members.all()] == ["good"]
    assert all(f"'bad{number}'" in caplog.text for number in range(len(wrong)))


def test_keys_of_another_type_are_deleted_and_others_kept(client: redis.Redis) -> None:
    client.set(keys.members_key(), "nonsense")
    client.rpush(keys.plan_key(), "nonsense")
    client.set(keys.target_key(), "a target")
    assert sorted(delete_foreign(client)) == sorted([keys.members_key(), keys.plan_key()])
    assert not client.exists(keys.members_key(), keys.plan_key())
    assert client.get(keys.target_key()) == b"a target"


@pytest.mark.parametrize("nonsense", ["x", "", "inf", "-5", "1e300", "1.5", "nan"])
def test_counters_go_on_after_nonsense(client: redis.Redis, nonsense: str) -> None:
    # Given counters that are no numbers
    for key in (keys.term_key(), keys.epoch_key(), keys.arrivals_key()):
        client.set(key, nonsense)
    # Then a leader's term and epoch follow what it knows, and requests are numbered
    leadership = Leadership(client, "me", 60)
    assert leadership.acquire(epoch=7)
    assert leadership.fence == "1:me"
    client.set(keys.epoch_key(), nonsense)
    script = Plans(client)._next_epoch
    assert int(script(keys=[keys.leader_key(), keys.epoch_key()], args=["1:me", 7])) == 8
    submit(client, "r1")
    submit(client, "r2")
    if nonsense != "-5":
        assert [client.hget(keys.request_key(r), "arrival") for r in ("r1", "r2")] == [b"1", b"2"]


def test_events_that_are_no_events_are_passed_over(client: redis.Redis) -> None:
    events = Events(client)
    client.xadd(keys.events_key(), {"x": "y"})
    client.xadd(keys.events_key(), {"k": b"\xff", "t": "text", "d": "soon"})
    events.add("joined", "a worker")
    assert [event.text for event in events.latest(5)] == ["text", "a worker"]


# -- plan, target, manifest ------------------------------------------------------------------------


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda text: text[:8].decode(errors="replace"))
def test_a_plan_and_a_target_that_were_overwritten_are_written_again(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis, nonsense: bytes
) -> None:
    # Given a plan in force
    plan, target = bring_up(runtime, shards), Targets(client).current()
    # When another client overwrites both
    client.set(keys.plan_key(), nonsense)
    client.set(keys.next_plan_key(), nonsense)
    client.set(keys.target_key(), nonsense)
    with pytest.raises(WireError, match="the plan cannot be read"):
        Plans(client).current()
    with pytest.raises(WireError, match="the target cannot be read"):
        Targets(client).require()
    watch(runtime)
    # Then both are back, and the engine has not stopped
    assert Plans(client).current() == plan
    assert Plans(client).texts()[1] is None
    assert Targets(client).current() == target
    assert engine_of(runtime).ready


def test_only_the_leader_writes_a_target_again_and_only_a_lost_one(client: redis.Redis) -> None:
    # Given a target that was asked for meanwhile
    asked, targets = ask(client), Targets(client)
    leadership = Leadership(client, "me", 60)
    assert leadership.acquire()
    targets.keep(replace(asked, name="older"), leadership.fence)
    assert targets.current() == asked
    # When it is lost / Then the leader writes it again, and no other
    client.delete(keys.target_key())
    with pytest.raises(Fenced):
        targets.keep(asked, "1:other")
    targets.keep(asked, leadership.fence)
    assert targets.current() == asked


def test_a_manifest_that_cannot_be_read_is_staged_again(client: redis.Redis) -> None:
    # Given a staged model whose manifest another client has overwritten
    store = WeightStore(client)
    job = StagingJob("d", "tiny", {"model_type": "llama"}, {}, {}, None, 4096)  # type: ignore[arg-type]
    manifest = store.stage(job)
    for nonsense in (*NONSENSE, manifest.to_json().replace('"num_bytes": 0', '"num_bytes": -1')):
        client.set(keys.manifest_key("d"), nonsense)
        with pytest.raises(WireError, match="skynet split"):
            store.manifest("d")
        # When it is split again / Then it is whole
        assert store.stage(job) == manifest
        assert store.manifest("d") == manifest


# -- requests --------------------------------------------------------------------------------------


def test_requests_that_cannot_be_read_end_and_others_run(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given good requests, and some of another type, without fields, and with nonsense in a field
    bring_up(runtime, shards)
    submit(client, "good")
    fields: Any = client.hgetall(keys.request_key("good"))
    wrong: dict[bytes, bytes] = {
        b"prompt": codec.encode(np.array([1, 999], np.int32)),  # beyond the vocabulary
        b"options": Options(num_beams=10**6).to_json().encode(),
        b"created": b"nan",
        b"emitted": b"many",
        b"deadline": b"{}",
        b"state": b"\xff",
    }
    for name, value in wrong.items():
        client.hset(keys.request_key(f"bad-{name.decode()}"), mapping={**fields, name: value})
        client.zadd(keys.open_requests_key(), {f"bad-{name.decode()}": 0})
    client.set(keys.request_key("bad-type"), "nonsense")
    client.hset(keys.request_key("bad-empty"), "x", "y")
    client.zadd(keys.open_requests_key(), {"bad-type": 0, "bad-empty": 0, b"\xff": 0})
    epoch = engine_of(runtime).plan.epoch
    # When the leader sweeps
    watch(runtime)
    # Then only the good one is open and runs, under the same plan
    requests = Requests(client, 1000)
    assert requests.open_ids() == ["good"]
    assert client.zcard(keys.open_requests_key()) == 1
    assert engine_of(runtime).sequences.keys() == {"good"}
    assert engine_of(runtime).plan.epoch == epoch
    # And clients of the others get an error
    for name in wrong:
        end = requests.wait_end(f"bad-{name.decode()}", 5)
        assert end.error == "BadRequest"
        starts = (f"request bad-{name.decode()}", "num_beams", "prompt: token")
        assert end.message.startswith(starts)
    with pytest.raises(RequestLost):
        requests.wait_end("bad-type", 5)


def test_one_requests_stream_of_another_type_does_not_stop_the_others(client: redis.Redis) -> None:
    # Given three requests of one step; a key of the second one is overwritten
    requests = Requests(client, 1000)
    for name in ("a", "b", "c"):
        requests.create(Record(name, (1,), Options(), 0.0, 1e12))
    client.set(keys.tokens_key("b"), "nonsense")
    # When a token of each is written
    replies = requests.writer.append([(name, Token(0, 5, "x")) for name in ("a", "b", "c")])
    # Then the others' are; and that one can be ended
    assert replies == [1, 0, 1]
    with pytest.raises(WireError, match="no stream"):
        requests.emitted("b")
    requests.discard("b")
    assert [token.id for token in requests.emitted("c")] == [5]


# -- messages --------------------------------------------------------------------------------------


def test_parts_that_do_not_fit_the_step_leave_it_in_flight(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a step in flight
    bring_up(runtime, shards)
    submit(client, "r1")
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    right = parts(11)
    two = Candidates(np.array([1], np.int32), np.array([1.0], np.float32), 1.0, 1.0)
    # When forged parts come: too few, too many, empty, with other outputs, or no parts at all
    for forged in (
        [],
        right[:1],
        [*right, right[0]],
        [Part().encode()] * 2,
        [Part(candidates=[two, two]).encode()] * 2,
        [Part(vectors=[np.ones(3, np.float32)]).encode()] * 2,
        [b"nonsense", b""],
        [7, None],
    ):
        runtime.messages.handle("finish_step", forged, epoch, step, 0.0)
    for numbers in (("x", step), (epoch, None), (2**70, step), (True, step)):
        runtime.messages.handle("finish_step", right, *numbers, 0.0)
    runtime.messages.handle("fail_step", epoch, [], "ShardFailed", "no")
    runtime.messages.handle("fail_step", epoch, step, "ShardFailed", {"no": "text"})
    # And the messages of another cluster, whose plan has the same epoch
    runtime.messages.handle("finish_step", parts(99), epoch, step, 0.0, "another")
    runtime.messages.handle("fail_step", epoch, step, "ShardFailed", "no", "another")
    assert step in engine_of(runtime).in_flight
    # Then the true ones finish it, once
    plan_id = engine_of(runtime).plan.id
    for _ in range(2):
        runtime.messages.handle("finish_step", right, epoch, step, 0.0, plan_id)
    assert [token.id for token in Requests(client, 1000).emitted("r1")] == [11]


def test_plans_of_one_epoch_have_different_ids(client: redis.Redis) -> None:
    one, other = tiny_plan().with_epoch(3), tiny_plan().with_epoch(3)
    assert one.epoch == other.epoch
    assert one.id
    assert one.id != other.id


def test_a_consumer_survives_what_is_no_message(app: SkynetCelery, client: redis.Redis) -> None:
    # Given a consumer of one message at a time, as a worker is
    taken: list[Any] = []
    connection = app.connection_for_read()
    queue = kombu.Queue("stage0.shard0", kombu.Exchange(""), routing_key="stage0.shard0")

    def take(message: kombu.Message) -> None:
        if "fail" in message.headers:
            raise KeyError("id")  # as Celery does for a header that is missing
        taken.append(message.headers["n"])
        message.ack()

    def consume() -> bool:
        try:
            connection.drain_events(timeout=1)
        except TimeoutError:
            pass
        return len(taken) == 3

    with connection, connection.channel() as channel:
        channel.basic_qos(0, 1, False)
        with kombu.Consumer(channel, [queue], on_message=take, accept=["json"]):
            producer = kombu.Producer(channel, routing_key="stage0.shard0")
            # When items come that are no messages, one that cannot be handled, and good ones
            client.lpush(keys.queue_key("stage0.shard0"), *NONSENSE, b"7", b'{"properties": {}}')
            producer.publish({}, headers={"n": 1})
            producer.publish({}, headers={"fail": 1})
            producer.publish({}, headers={"n": 2})
            wait_for("two messages", lambda: consume() or len(taken) == 2)
            # And the queue's key is overwritten
            client.set(keys.queue_key("stage0.shard0"), "nonsense")
            wait_for(
                "the queue", lambda: consume() or not client.exists(keys.queue_key("stage0.shard0"))
            )
            producer.publish({}, headers={"n": 3})
            wait_for("the last message", consume)
    # Then the good ones were taken
    assert taken == [1, 2, 3]
