"""The orchestrator's runtime on a real Redis, without Celery's worker and without shards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import redis
from chord_cases import queued, tiny_plan

from skynet import names
from skynet.celery import SkynetCelery
from skynet.engine.runtime import OrchestratorRuntime
from skynet.names import Address
from skynet.planning.plan import Plan
from skynet.settings import settings
from skynet.step import Candidates, Part
from skynet.store.members import Member, Members
from skynet.store.plans import Plans
from skynet.store.requests import Options, Record, Requests, Token
from skynet.store.server import EmbeddedServer
from skynet.store.weights import WeightStore

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

CONFIG: dict[str, Any] = {"model_type": "llama", "vocab_size": 100, "eos_token_id": 2}


@pytest.fixture
def runtime(
    server: EmbeddedServer,
    client: redis.Redis,
    app: SkynetCelery,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[OrchestratorRuntime]:
    """An orchestrator beside a staged model without weights; no plan is in force yet."""
    monkeypatch.setenv("SKYNET_REDIS_URL", server.url)
    settings.cache_clear()
    WeightStore(client).stage("d", "tiny", CONFIG, {}, {}, None, tile_bytes=4096)  # type: ignore[arg-type]
    found = OrchestratorRuntime(app, "orchestrator@here")
    yield found
    found.stop()
    found.client.close()
    settings.cache_clear()


def put_in_force(client: redis.Redis, plan: Plan) -> Plan:
    """Publish a plan, and say that all its shards have it."""
    numbered = Plans(client).publish(plan)
    for address in numbered.addresses():
        place = str(Address(*address))
        member = Member(f"{place}@here", place, "here", 7, "ready", numbered.epoch)
        Members(client, 60).renew(member)
    return numbered


def submit(client: redis.Redis, name: str, **options: Any) -> None:
    now = time.time()
    record = Record(name, (1, 5, 7), Options(**{"max_tokens": 3, **options}), now, now + 100)
    Requests(client, 1000).create(record)


def watch(runtime: OrchestratorRuntime) -> None:
    """A tick at which everything is due."""
    runtime._due.clear()
    runtime.tick()


def sent_steps(client: redis.Redis) -> list[tuple[int, int]]:
    """(epoch, step) of the messages in the first shard's queue, which is empty then."""
    return [tuple(message["body"][0][:2]) for message in queued(client, "stage0.shard0")]


def parts(token: int) -> list[bytes]:
    """Both shards' candidates for one row: the token, and nothing."""
    best = Candidates(np.array([token], np.int32), np.array([1.0], np.float32), 1.0, 1.0)
    none = Candidates(np.empty(0, np.int32), np.empty(0, np.float32), 0.0, 0.0)
    return [Part(candidates=[offer], compute_s=0.001).encode() for offer in (best, none)]


def test_a_request_without_a_message_is_found_and_answered(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a plan in force, and a record whose message was lost
    plan = put_in_force(client, tiny_plan())
    submit(client, "r1")
    # When the orchestrator looks, and three steps come back
    watch(runtime)
    for token in (11, 12, 13):
        ((epoch, step),) = sent_steps(client)
        assert epoch == plan.epoch
        runtime.finish_step(parts(token), epoch, step, 0.0)
    # Then the request is over, in the record, in the stream and as Celery's result
    requests = Requests(client, 1000)
    assert requests.emitted_tokens("r1") == [11, 12, 13]
    assert requests.open_ids() == []
    result = runtime.app.AsyncResult("r1")
    assert result.state == "SUCCESS"
    assert result.result["token_ids"] == [11, 12, 13]
    assert (result.result["prompt_tokens"], result.result["finish_reason"]) == (3, "length")


def test_the_end_id_of_the_config_ends_an_answer(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a model whose answers end with token 2
    put_in_force(client, tiny_plan())
    submit(client, "r1", max_tokens=50)
    watch(runtime)
    # When that one comes
    ((epoch, step),) = sent_steps(client)
    runtime.finish_step(parts(2), epoch, step, 0.0)
    # Then it is over
    assert runtime.app.AsyncResult("r1").result["finish_reason"] == "stop"
    assert sent_steps(client) == []


def test_a_failed_step_is_the_end_of_its_request(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a request in flight
    put_in_force(client, tiny_plan())
    submit(client, "r1")
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    # When a shard fails
    runtime.fail_step(epoch, step, "PeerLost", "stage0.shard1 was too late")
    # Then the request ends with its words
    found = Requests(client, 1000).read("r1")
    assert found is not None
    assert found.end is not None
    assert (found.end["error"], found.end["message"]) == ("PeerLost", "stage0.shard1 was too late")
    assert runtime.app.AsyncResult("r1").state == "FAILURE"


def test_a_step_of_an_old_plan_that_fails_is_run_again_under_the_new_one(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a request with a token and a step in flight
    old = put_in_force(client, tiny_plan())
    submit(client, "r1")
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    runtime.finish_step(parts(11), epoch, step, 0.0)
    ((epoch, step),) = sent_steps(client)
    # When the shards turn to a new plan before the orchestrator has seen it
    new = put_in_force(client, tiny_plan(1, 2))
    runtime.fail_step(epoch, step, "ShardFailed", f"stage0.shard0 has no weights of {old.epoch}")
    # Then the request goes on there, prompt and answer so far as one prefill
    watch(runtime)
    ((epoch, step),) = sent_steps(client)
    assert epoch == new.epoch
    assert runtime.engine is not None
    (row,) = runtime.engine.in_flight[step].step.rows
    assert (row.start, row.tokens) == (0, (1, 5, 7, 11))
    assert Requests(client, 1000).open_ids() == ["r1"]


def test_a_successor_goes_on_where_another_orchestrator_stopped(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given requests that another left behind: one in mid-answer, one to be cancelled, one whose
    # last token was written and its end was not
    requests = Requests(client, 1000)
    for name in ("middle", "cancel", "last"):
        submit(client, name)
    requests.append([("middle", Token(0, 11, ""))])
    requests.ask_cancel("cancel")
    for index, token in enumerate((11, 12, 13)):
        requests.append([("last", Token(index, token, ""))])
    # When this one finds them
    put_in_force(client, tiny_plan())
    watch(runtime)
    # Then the last is answered, the cancelled one ended, and the other goes on
    assert runtime.app.AsyncResult("last").result["token_ids"] == [11, 12, 13]
    assert runtime.app.AsyncResult("cancel").state == "REVOKED"
    assert requests.open_ids() == ["middle"]
    ((epoch, step),) = sent_steps(client)
    runtime.finish_step(parts(12), epoch, step, 0.0)
    assert requests.emitted_tokens("middle") == [11, 12]


def test_a_lost_shard_ends_what_is_in_flight_and_its_successor_gets_the_rest(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a request in flight
    plan = put_in_force(client, tiny_plan())
    submit(client, "r1")
    watch(runtime)
    sent_steps(client)
    # When a shard's lease is gone, and a request comes
    Members(client, 60).leave("stage1.shard1@here")
    submit(client, "r2")
    watch(runtime)
    # Then the first ends with an error that names the shard, the second waits
    found = Requests(client, 1000).read("r1")
    assert found is not None
    assert found.end is not None
    assert found.end["error"] == "ShardLost"
    assert "stage1.shard1 (pid 7)" in found.end["message"]
    assert runtime.status()["state"] == "waiting for stage1.shard1"
    assert sent_steps(client) == []
    # And when there is another, it runs
    place = "stage1.shard1"
    Members(client, 60).renew(Member(f"{place}@there", place, "there", 8, "ready", plan.epoch))
    watch(runtime)
    assert len(sent_steps(client)) == 1


def test_who_stops_gives_its_lease_back(runtime: OrchestratorRuntime, client: redis.Redis) -> None:
    # Given an orchestrator with a lease
    put_in_force(client, tiny_plan())
    watch(runtime)
    watch(runtime)
    members = Members(client, 60)
    found = {member.address: member for member in members.all()}
    assert found["orchestrator"].state == "ready"
    # When it stops
    runtime.stop()
    # Then it is gone, and so is its word
    assert "orchestrator" not in {member.address for member in members.all()}
    assert client.exists(names.ENGINE_KEY) == 0


def test_a_request_for_another_model_is_refused(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a request whose token ids belong to a model that was replaced meanwhile
    now = time.time()
    Requests(client, 1000).create(
        Record("old", (1, 5), Options(max_tokens=3), now, now + 100, model="another")
    )
    # When a plan of this model is in force
    put_in_force(client, tiny_plan())
    watch(runtime)
    # Then it ends with an error, and no step was sent for it
    assert Requests(client, 1000).open_ids() == []
    assert "another model" in str(runtime.app.AsyncResult("old").result)
    assert sent_steps(client) == []


def test_an_address_with_two_workers_is_not_ready(
    runtime: OrchestratorRuntime, client: redis.Redis
) -> None:
    # Given a plan, and two machines that both claim its first address
    plan = put_in_force(client, tiny_plan())
    twin = Member("stage0.shard0@there", "stage0.shard0", "there", 8, "ready", plan.epoch)
    Members(client, 60).renew(twin)
    submit(client, "r1")
    # When the orchestrator looks
    watch(runtime)
    # Then it sends nothing, and says why
    assert sent_steps(client) == []
    assert runtime.missing == ["stage0.shard0 (has 2 workers)"]
