"""The snapshot of a cluster: its health in a sentence, its grid, and everything beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cluster_states import LEASE_S, REDIS, full_grid, member, readings, state

from skynet.gateway.cluster.health import health
from skynet.gateway.cluster.places import others_of, stages_of
from skynet.gateway.cluster.redis_state import warnings_of
from skynet.gateway.cluster.requests import changing
from skynet.gateway.cluster.snapshot import snapshot_of, unreadable
from skynet.gateway.cluster.staged import found_text, state_of
from skynet.gateway.cluster.timings import SERIES, history_of, timings_of
from skynet.store.metrics import Metrics, Sample, ShardTime, StageTime
from skynet.store.staged_models import StagedModel


def cells(shown: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages = stages_of(shown, LEASE_S)
    return {cell["address"]: cell for stage in stages for cell in stage["cells"]}


def test_the_grid_has_a_cell_for_each_place() -> None:
    # Given three kinds of members / When
    grid = cells(state(*full_grid()))
    # Then each has its member, its state, and how much of its weights it has
    states = {address: (cell["state"], cell["host"]) for address, cell in grid.items()}
    assert states == {
        "stage0.shard0": ("ready", "host-a"),
        "stage0.shard1": ("ready", "host-b"),
        "stage1.shard0": ("loading", "host-c"),
        "stage1.shard1": ("loading", "host-d"),
    }
    assert grid["stage1.shard0"]["loaded_share"] == 0.63
    assert grid["stage0.shard1"]["heads"] == [2, 4]


def test_a_lost_a_silent_and_a_leaving_worker_show() -> None:
    # Given a place without a worker, one that renewed its lease long ago, and one that leaves
    silent = {**member("b", "stage0.shard1"), "silent_s": 2.2}
    grid = cells(state(silent, member("c", "stage1.shard0", leaving=True)))
    # Then
    assert grid["stage0.shard0"]["state"] == "empty"
    assert (grid["stage0.shard1"]["state"], grid["stage0.shard1"]["silent_s"]) == ("silent", 2.2)
    assert grid["stage1.shard0"]["state"] == "leaving"


def test_before_the_first_plan_the_grid_is_the_shape_that_is_asked_for() -> None:
    pinned = member("a", "", "starting", pinned="stage1.shard0")
    grid = cells(state(pinned, plan=None))
    assert [cell["state"] for cell in grid.values()] == ["empty", "empty", "starting", "empty"]


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        (member("x", "", "spare"), "spare: takes the place of a lost worker"),
        (member("x", "", "starting"), "is starting: it measures its speed"),
        (member("x", "", "spare", pinned="stage7.shard0"), "takes stage7.shard0 only, which this"),
        (member("x", "", "spare", pinned="stage0.shard0"), "takes stage0.shard0 only, which anoth"),
        (member("x", "", "spare", protocol=1), "speaks protocol 1, the leading orchestrator"),
        (member("x", "", "failed", problem="no memory"), "no memory"),
    ],
)
def test_a_worker_without_a_place_says_why(worker: dict[str, Any], why: str) -> None:
    (other,) = others_of(state(*full_grid(), worker), LEASE_S)
    assert other["id"] == "x"
    assert other["why"].startswith(why)


def test_the_sentence_tells_what_is_served_and_what_is_missing() -> None:
    busy = {"state": "ready", "running": 3, "waiting": 1, "tokens_per_s": 41.26}
    assert health(state(engine=busy), []) == {
        "level": "good",
        "sentence": "Serving tiny on 2 stages x 2 shards. 3 requests run and 1 waits, "
        "41.3 tokens/s.",
        "warnings": [],
    }
    assert health(state(), ["a"])["level"] == "warning"
    lost = health(state(waiting_for=["stage1.shard1 has no worker"]), [])
    assert lost["level"] == "bad"
    assert lost["sentence"] == "Recovering: tiny waits, stage1.shard1 has no worker."
    loading = state(*full_grid(), waiting_for=["stage1.shard0 is loading its weights"])
    assert health(loading, [])["level"] == "warning"
    soon = health(state(engine={"state": "waiting"}), [])
    assert soon["sentence"].startswith("Recovering: tiny waits, the orchestrator is about to")
    nothing = health(state(target=None, plan=None, waiting_for=["no model (stage one)"]), [])
    assert nothing["sentence"] == "No model: (stage one)."


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"policy": "allkeys-lru"}, "noeviction"),
        ({"limit_bytes": 10**9 + 1}, "maxmemory"),
        ({"append_only_status": "err"}, "append-only"),
    ],
)
def test_a_redis_that_may_lose_data_is_a_warning(fields: dict[str, Any], word: str) -> None:
    assert warnings_of(REDIS) == []
    (warning,) = warnings_of({**REDIS, **fields})
    assert word in warning
    shown = snapshot_of(readings(state(), redis={**REDIS, **fields}))
    assert shown["health"]["warnings"] == [warning]


@pytest.mark.parametrize(
    ("values", "engine", "word", "progress"),
    [
        ([b"waiting", b"0", None, None, None, None], {}, "waiting", None),
        ([b"running", b"0", None, b"1", None, None], {"r": [512, 4096]}, "prefill", [512, 4096]),
        ([b"running", b"9", None, b"1", b"2", b"4"], {}, "decoding", None),
        ([b"running", b"9", None, b"1", b"2", b"4"], {"r": [3, 20]}, "replaying", [3, 20]),
        ([b"running", b"9", b"1", b"1", b"2", b"4"], {}, "cancelling", None),
        ([None] * 6, {}, "unreadable", None),
        ([b"running", b"x", None, b"1", b"nan?", b"4"], {}, "prefill", None),
    ],
)
def test_a_request_has_one_state(
    values: list[bytes | None], engine: dict[str, Any], word: str, progress: list[int] | None
) -> None:
    shown = changing(values, {"state": "ready", "computing": engine}, "r")
    assert (shown["state"], shown["progress"]) == (word, progress)
    assert changing(values, {"state": "waiting"}, "r")["state"] in {word, "recovering"}


def test_tokens_per_second_are_of_the_tokens_after_the_first() -> None:
    values = [b"running", b"9", None, b"1", b"2.0", b"4.0"]
    assert changing(values, {"state": "ready"}, "r")["tokens_per_s"] == 4.0  # type: ignore[arg-type]


def test_without_metrics_there_is_no_data_yet() -> None:
    shown = snapshot_of(readings(state(*full_grid())))
    assert shown["timings"] is None
    assert shown["history"] == {"series": list(SERIES), "points": None}
    json.dumps(shown, allow_nan=False)


def test_timings_name_the_slowest_shard_and_hold_no_nan() -> None:
    # Given the shares of two shards, one of a number without meaning
    shards = (ShardTime(0, 0.2, 0.3), ShardTime(1, 0.4, 0.1))
    stage = StageTime(0, 0.4, 0.1, float("nan"), 0.5, 1, shards)
    # When / Then
    (shown,) = timings_of(Metrics(stages=(stage,))) or []
    assert (shown["slowest"], shown["compute"], shown["chord"]) == (1, 0.4, None)
    alone = Metrics(stages=(replace(stage, shards=shards[:1]),))
    assert (timings_of(alone) or [{}])[0]["slowest"] is None
    samples = (Sample(5.2, generation_tokens_per_s=3.0, running=2, first_token_p50_s=0.5),)
    assert history_of(Metrics(samples=samples)) == {"5": [3.0, 0.0, 2.0, 0.0, 0.5, None]}


def test_a_cluster_that_does_not_answer_is_a_snapshot_too() -> None:
    shown = unreadable("main", 5.0, "no answer from Redis at redis://here")
    assert shown["health"]["level"] == "bad"
    assert shown["health"]["sentence"] == "No answer from Redis at redis://here"


@pytest.mark.parametrize(
    ("fields", "broken", "word"),
    [
        ({}, 0, "complete"),
        ({}, 2, "broken"),
        ({"complete": False}, 0, "half"),
        ({"complete": False, "lean": True}, 2, "lean"),
        ({"complete": False, "being_staged": True}, 0, "staging"),
    ],
)
def test_a_staged_model_is_whole_half_or_broken(
    fields: dict[str, Any], broken: int, word: str
) -> None:
    given = {"complete": True, "in_force": False, "being_staged": False, "weights": "float32"}
    model = StagedModel("d", "tiny", 1, 1, 1, **{**given, **fields})
    assert state_of(model, broken) == word


def test_a_verification_ends_in_a_sentence() -> None:
    assert found_text([], {}) == "all tiles and files match"
    assert found_text(["tile 0 of a"], {"b": 3}) == (
        "1 missing or corrupted: tile 0 of a; 3 numbers are NaN or infinite, in b"
    )
