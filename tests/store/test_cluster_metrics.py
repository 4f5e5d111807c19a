"""The leading orchestrator's numbers in Redis."""

from __future__ import annotations

from contextlib import closing

import pytest
import redis
from orchestrator_cases import (
    MakeRuntime,
    Shards,
    beat,
    bring_up,
    parts,
    sent_steps,
    submit,
    watch,
)

from skynet.client.client import Client
from skynet.errors import Fenced
from skynet.local.server import EmbeddedServer
from skynet.orchestrator.runtime import OrchestratorRuntime
from skynet.store import metrics as metrics_module
from skynet.store.metrics import Metrics, MetricsStore
from skynet.wire import keys

# Celery's Redis backend calls what redis-py 8 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def read(client: redis.Redis) -> Metrics:
    metrics = MetricsStore(client).read()
    assert metrics is not None
    return metrics


def answer(runtime: OrchestratorRuntime, client: redis.Redis, name: str) -> None:
    """A request of three tokens."""
    submit(client, name)
    watch(runtime)
    for token in (11, 12, 13):
        ((epoch, step),) = sent_steps(client)
        runtime.messages.finish_step(parts(token), epoch, step, 0.0)
    watch(runtime)


def test_a_request_is_counted_from_its_prompt_to_its_last_token(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given
    bring_up(runtime, shards)
    # When one is answered, one is refused, and one is in a step
    answer(runtime, client, "r1")
    submit(client, "r2", prompt=tuple(range(63)))
    submit(client, "r3", prompt=(1000,))
    watch(runtime)
    metrics = read(client)
    # Then
    assert metrics.counter("prompt_tokens") == 3 + 63
    assert metrics.counter("generation_tokens") == 3
    assert metrics.counters["request_success"] == {"length": 1}
    assert metrics.counters["request_failure"] == {"BadRequest": 1}
    assert metrics.gauges["num_requests_running"] == {"": 1}
    assert metrics.gauges["kv_cache_usage_perc"] == {"": pytest.approx(1 / 8)}
    counts = {name: sum(h[""].counts) for name, h in metrics.histograms.items() if "" in h}
    assert counts == {
        "time_to_first_token_seconds": 1,
        "inter_token_latency_seconds": 2,
        "e2e_request_latency_seconds": 1,
        "request_queue_time_seconds": 2,
        "request_prefill_time_seconds": 1,
        "request_decode_time_seconds": 1,
        "request_prompt_tokens": 1,
        "request_generation_tokens": 1,
        "step_tokens": 4,
    }
    assert metrics.histograms["step_tokens"][""].sum == 3 + 1 + 1 + 63
    assert metrics.histograms["request_prompt_tokens"][""].sum == 3
    # And the key is bounded in time
    assert 0 < client.ttl(keys.metrics_key()) <= metrics_module.LIFETIME_S


def test_counters_survive_a_change_of_leader(
    make_runtime: MakeRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a leader that has answered
    first, second = make_runtime(), make_runtime()
    beat(first)
    bring_up(first, shards)
    answer(first, client, "r1")
    before = read(client)
    # When another leads and answers
    first.leadership.resign()
    beat(second)
    bring_up(second, shards)
    answer(second, client, "r2")
    after = read(client)
    # Then it counted on
    assert after.counters["request_success"] == {"length": 2}
    assert after.counter("generation_tokens") == 6
    for name, series in before.counters.items():
        assert all(after.counters[name][key] >= value for key, value in series.items())
    # And its plan is a recovery
    assert [recovery.kind for recovery in after.recoveries] == ["planned", "leader"]
    assert after.counters["recoveries"] == {"planned": 1, "leader": 1}
    assert after.gauges["leader_term"] == {"": 2}
    # And the first one, which is fenced, cannot write
    with pytest.raises(Fenced):
        first.context.metrics.write(None, 1.0, "1:" + first.member.id)
    assert read(client).at == after.at


def test_nonsense_in_the_key_does_not_keep_an_orchestrator_from_leading(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    client.set(keys.metrics_key(), "nonsense")
    bring_up(runtime, shards)
    assert read(client).gauges["plan_epoch"] == {"": 1}


def test_a_lost_worker_is_a_recovery_with_its_parts(
    runtime: OrchestratorRuntime, shards: Shards, client: redis.Redis
) -> None:
    # Given a request in a step
    bring_up(runtime, shards)
    shards.join("spare")
    submit(client, "r1")
    watch(runtime)
    sent_steps(client)
    # When a worker dies, and a spare takes its place
    shards.die("stage0.shard1")
    bring_up(runtime, shards)
    ((epoch, step),) = sent_steps(client)
    runtime.messages.finish_step(parts(11), epoch, step, 0.0)
    watch(runtime)
    metrics = read(client)
    # Then
    recovery = metrics.recoveries[-1]
    assert (recovery.kind, recovery.epoch) == ("lost", epoch)
    assert min(recovery.notice_s, recovery.load_s, recovery.replay_s, recovery.at) > 0
    parts_of = {
        key: sum(item.counts) for key, item in metrics.histograms["recovery_seconds"].items()
    }
    assert parts_of == {"load": 2, "notice": 1, "replay": 1}


def test_the_last_minutes_are_sampled(
    runtime: OrchestratorRuntime,
    shards: Shards,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a first sample
    now = [runtime.context.requests.now()]
    monkeypatch.setattr(runtime.context.requests, "now", lambda: now[0])
    bring_up(runtime, shards)
    assert read(client).samples == ()
    # When a request is answered, shards compute, and 8 s pass
    answer(runtime, client, "r1")
    for name in ("stage0.shard0", "stage1.shard1"):
        shards.live[name].compute_s, shards.live[name].steps = 2.0, 3
    shards.follow()
    now[0] += 8
    watch(runtime)
    metrics = read(client)
    # Then
    (sample,) = metrics.samples
    assert (sample.at, sample.running, sample.waiting) == (pytest.approx(now[0], abs=0.01), 0, 0)
    assert sample.prompt_tokens_per_s == pytest.approx(3 / 8, abs=1e-3)
    assert sample.generation_tokens_per_s == pytest.approx(3 / 8, abs=1e-3)
    assert sample.first_token_p50_s == sample.first_token_p95_s is not None
    assert sample.step_s is not None
    assert [(stage.stage, stage.compute, stage.slowest) for stage in metrics.stages] == [
        (0, 0.25, 0),
        (1, 0.25, 1),
    ]
    assert all(
        stage.compute + stage.exchange + stage.chord + stage.idle == pytest.approx(1)
        for stage in metrics.stages
    )
    # And a sample without tokens has no time to the first one
    now[0] += 5
    watch(runtime)
    newest = read(client).samples[-1]
    assert (newest.generation_tokens_per_s, newest.first_token_p50_s) == (0, None)
    assert newest.step_s is None


def test_a_client_reads_them_and_the_append_only_file_is_spared(
    server: EmbeddedServer, client: redis.Redis
) -> None:
    with closing(Client(server.url)) as reader:
        assert reader.metrics() is None
        assert MetricsStore(client).write(Metrics(1.0), "")
        assert reader.metrics() == Metrics(1.0)
