"""Prometheus' text format: of a cluster, of a gateway; and the Grafana board over both."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from skynet import __version__
from skynet.engine.step_timing import StepTotals
from skynet.gateway.cluster_exposition import cluster_exposition, clusters_exposition
from skynet.gateway.metrics import NO_ROUTE, REASONS, GatewayMetrics
from skynet.orchestrator.numbers import Numbers
from skynet.orchestrator.stage_times import StageTimes
from skynet.store.members import Member
from skynet.store.metric_table import GATEWAY, METRICS
from skynet.store.metrics import Metrics, parse
from skynet.wire.typed_json import write_json

ROOT = Path(__file__).parents[3]
BOARD: dict[str, Any] = json.loads((ROOT / "docs" / "grafana" / "skynet.json").read_text())
NAME = re.compile(r"\bskynet_[a-z0-9_]+")


def counted() -> Metrics:
    """Each metric of the cluster at least once, through JSON."""
    numbers, times = Numbers(), StageTimes()
    for metric in METRICS:
        labels = ["x"] * len(metric.labels)
        if metric.source == "cluster" and metric.kind == "counter":
            numbers.count(metric.name, *labels, by=2)
        elif metric.source == "cluster" and metric.kind == "gauge":
            numbers.gauge(metric.name, 0.5, *labels)
        elif metric.source == "cluster" and metric.kind == "histogram":
            for value in (0.0015, 7.0, 1e9):
                numbers.observe(metric.name, value, *labels)
    for compute_s in (1.0, 3.0):
        shard = Member("a", "a", "stage0.shard1", "here", 7)
        shard.compute_s, shard.exchange_s, shard.steps = compute_s, 1.0, int(compute_s)
        totals = StepTotals(int(compute_s), compute_s, compute_s, int(compute_s))
        times.follow([shard], totals, numbers)
    return parse(write_json(Metrics, Metrics(1.0, **numbers.series())))


STATUS: dict[str, Any] = {
    "target": {"name": "tiny"},
    "engine": {"state": "ready"},
    "members": [
        asdict(Member("a", "a", "stage0.shard0", "here", 7, "ready")),
        asdict(Member("b", "b", "", "here", 7, "spare")),
        asdict(Member("c", "c", "orchestrator", "here", 7, "leading")),
    ],
    "missing": ["stage0.shard1"],
    "redis_memory_bytes": 12345,
}


def samples(text: bytes) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by the name of the sample, then by the values of the labels, in the table's order."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[_labels(sample)] = sample.value
    return found


def _labels(sample: Any) -> tuple[str, ...]:
    """The parser sorts them by name; `le` comes last."""
    order = ("model_name", "path", "method", "status", "stage", "shard")
    known = [sample.labels[name] for name in order if name in sample.labels]
    return (*known, *(value for name, value in sample.labels.items() if name not in order))


async def count_requests(metrics: GatewayMetrics) -> None:
    """Requests of every kind to a small application."""

    async def one(request: Any) -> PlainTextResponse:
        return PlainTextResponse("one")

    async def fails(request: Any) -> PlainTextResponse:
        raise RuntimeError("as a bug would")

    async def stream(request: Any) -> StreamingResponse:
        async def chunks() -> Any:
            yield b"data: 1\n\n"
            yield b"data: 2\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    routes = [Route("/models/{name}", one), Route("/fails", fails), Route("/stream", stream)]
    app = metrics.wrap(Starlette(routes=routes))
    open_streams = []

    async def receive() -> Message:
        """The client stays, and sends nothing."""
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and message["body"].startswith(b"data"):
            open_streams.append(samples(metrics.exposition())["skynet_http_streams_open"][()])

    async def get(path: str, method: str = "GET") -> None:
        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b""}
        await app(scope, receive, send)

    await get("/models/a")
    await get("/models/b")
    await get("/nothing")
    await get("/models/c", method="BREW")
    await get("/stream")
    with pytest.raises(RuntimeError):
        await get("/fails")
    assert open_streams == [1, 1]


@pytest.fixture(scope="module")
def gateway_metrics() -> GatewayMetrics:
    metrics = GatewayMetrics()
    asyncio.run(count_requests(metrics))
    return metrics


def test_requests_are_counted_by_route_and_not_by_path(gateway_metrics: GatewayMetrics) -> None:
    found = samples(gateway_metrics.exposition())
    requests = found["skynet_http_requests_total"]
    # Labels of bounded number: clients choose paths and methods
    assert requests == {
        ("/models/{name}", "GET", "200"): 2,
        ("/models/{name}", "OTHER", "405"): 1,
        (NO_ROUTE, "GET", "404"): 1,
        ("/stream", "GET", "200"): 1,
        ("/fails", "GET", "500"): 1,
    }
    assert found["skynet_http_request_duration_seconds_count"][("/models/{name}",)] == 3
    assert found["skynet_http_streams_open"] == {(): 0}
    assert found["skynet_build_info"] == {(__version__,): 1}


def test_rejections_are_counted_by_known_reasons() -> None:
    metrics = GatewayMetrics()
    metrics.rejected("queue_full")
    found = samples(metrics.exposition())["skynet_admission_rejections_total"]
    assert found == {(reason,): float(reason == "queue_full") for reason in REASONS}
    with pytest.raises(ValueError, match="reason 'tired': use one of queue_full"):
        metrics.rejected("tired")


def test_a_clusters_numbers_are_those_in_redis_and_of_the_status() -> None:
    found = samples(cluster_exposition(counted(), STATUS))
    assert found["skynet_prompt_tokens_total"] == {("tiny",): 2}
    assert found["skynet_request_success_total"] == {("tiny", "x"): 2}
    assert found["skynet_step_seconds_count"] == {("tiny", "0"): 3}
    assert found["skynet_shard_compute_seconds_sum"] == {("tiny", "0", "1"): 2}
    buckets = found["skynet_time_to_first_token_seconds_bucket"]
    wanted = {"0.001": 0, "0.005": 1, "7.5": 2, "2560.0": 2, "+Inf": 3}
    assert {key: buckets["tiny", key] for key in wanted} == wanted
    assert found["skynet_members"] == {
        ("tiny", state): 1 for state in ("ready", "spare", "leading")
    }
    assert found["skynet_spares"] == found["skynet_missing_places"] == {("tiny",): 1}
    assert found["skynet_redis_memory_bytes"] == {("tiny",): 12345}


def test_without_a_leader_there_are_counters_and_no_gauges_of_its_engine() -> None:
    # Given numbers that a leader has left behind
    found = samples(cluster_exposition(counted(), {**STATUS, "engine": None}))
    # Then
    assert "skynet_num_requests_running" not in found
    assert found["skynet_prompt_tokens_total"] == {("tiny",): 2}
    # And without any numbers, what has not happened is 0
    found = samples(cluster_exposition(None, {**STATUS, "engine": None}))
    assert found["skynet_generation_tokens_total"] == {("tiny",): 0}
    assert found["skynet_missing_places"] == {("tiny",): 1}


def test_several_clusters_are_one_exposition() -> None:
    found = samples(clusters_exposition({"a": (counted(), STATUS), "b": (None, STATUS)}))
    assert found["skynet_prompt_tokens_total"] == {("a",): 2, ("b",): 0}


def test_each_metric_of_the_table_is_in_the_output_and_no_other(
    gateway_metrics: GatewayMetrics,
) -> None:
    def families(text: bytes) -> dict[str, tuple[str, str]]:
        return {
            family.name: (family.type, family.documentation)
            for family in text_string_to_metric_families(text.decode())
            if not family.name.endswith("_created")
        }

    def wanted(of_gateway: bool) -> dict[str, tuple[str, str]]:
        return {
            f"skynet_{metric.name}": (metric.kind, metric.help)
            for metric in METRICS
            if (metric.source == GATEWAY) == of_gateway
        }

    assert families(gateway_metrics.exposition()) == wanted(of_gateway=True)
    assert families(cluster_exposition(counted(), STATUS)) == wanted(of_gateway=False)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend(gateway_metrics: GatewayMetrics) -> None:
    for text in (gateway_metrics.exposition(), cluster_exposition(counted(), STATUS)):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# -- the board -------------------------------------------------------------------------------------


def expressions() -> list[str]:
    """Every query of the board: of panels, variables and annotations."""
    found = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
    found += [item["expr"] for item in BOARD["annotations"]["list"]]
    return found + [
        item["definition"] for item in BOARD["templating"]["list"] if "definition" in item
    ]


def test_every_metric_of_the_board_is_in_the_output(gateway_metrics: GatewayMetrics) -> None:
    output = samples(gateway_metrics.exposition()) | samples(cluster_exposition(counted(), STATUS))
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert named <= output.keys()
    # And every metric is on the board
    shown = {metric.shown_name for metric in METRICS}
    assert [name for name in shown if not any(other.startswith(name) for other in named)] == []


def test_the_board_has_the_variables_that_its_queries_use() -> None:
    variables = {item["name"] for item in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)\{?(\w+)", " ".join(expressions())))
    assert used == {"model", "stage"}
    assert used | {"DS_PROMETHEUS"} == variables
    titles = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert titles == ["Users", "Engine", "Stages", "Cluster"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
