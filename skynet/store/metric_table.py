"""Every metric: its name, kind, meaning and labels. Names are API: boards break when one changes.

The leading orchestrator counts those of the cluster (skynet/store/metrics.py); each gateway counts
those of its HTTP requests. docs/monitoring.md has the same table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PREFIX = "skynet_"
CLUSTER, STATUS, GATEWAY = "cluster", "status", "gateway"

# Buckets of vLLM, so that its boards work here; upper limits, the last bucket has none.
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = tuple(float(2**power) for power in range(18))

Kind = Literal["counter", "gauge", "histogram", "summary"]


class Metric(NamedTuple):
    """One metric.

    name: without the prefix; of a counter also without `_total`.
    source: `cluster`, counted by the leading orchestrator; `status`, from the state of the cluster
        when it is asked for; `gateway`, counted by one gateway.
    """

    name: str
    kind: Kind
    source: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def shown_name(self) -> str:
        """The name in expositions and boards."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _histogram(name: str, buckets: tuple[float, ...], help_: str, *labels: str) -> Metric:
    return Metric(name, "histogram", CLUSTER, help_, labels, buckets)


METRICS = (
    Metric("num_requests_running", "gauge", CLUSTER, "Requests that have slots."),
    Metric("num_requests_waiting", "gauge", CLUSTER, "Requests that wait for slots."),
    Metric("kv_cache_usage_perc", "gauge", CLUSTER, "Share of slots in use, from 0 to 1."),
    Metric("prompt_tokens", "counter", CLUSTER, "Prompt tokens of the requests that started."),
    Metric("generation_tokens", "counter", CLUSTER, "Tokens of answers."),
    Metric("request_success", "counter", CLUSTER, "Answered requests.", ("finished_reason",)),
    Metric(
        "request_failure", "counter", CLUSTER, "Requests that ended with this error.", ("error",)
    ),
    _histogram("time_to_first_token_seconds", FIRST_TOKEN_S, "From submission to the first token."),
    _histogram("inter_token_latency_seconds", BETWEEN_TOKENS_S, "Between two tokens of an answer."),
    _histogram("e2e_request_latency_seconds", LATENCY_S, "From submission to the end."),
    _histogram("request_queue_time_seconds", LATENCY_S, "From submission to the first step."),
    _histogram(
        "request_prefill_time_seconds", LATENCY_S, "From the first step to the first token."
    ),
    _histogram("request_decode_time_seconds", LATENCY_S, "From the first to the last token."),
    _histogram("request_prompt_tokens", TOKENS, "Prompt tokens of an answered request."),
    _histogram("request_generation_tokens", TOKENS, "Tokens of an answer."),
    _histogram("step_tokens", TOKENS, "Tokens that a step computes."),
    Metric(
        "step_seconds",
        "summary",
        CLUSTER,
        "Time of a stage for a step: compute and exchange of its slowest shard, and chords.",
        ("stage",),
    ),
    Metric(
        "shard_compute_seconds",
        "summary",
        CLUSTER,
        "Compute of a shard for a step.",
        ("stage", "shard"),
    ),
    Metric(
        "exchange_wait_seconds",
        "summary",
        CLUSTER,
        "Time that a shard waits in a step for the partials of its peers.",
        ("stage", "shard"),
    ),
    Metric("plan_epoch", "gauge", CLUSTER, "Epoch of the plan in force; 0: there is none."),
    Metric("leader_term", "gauge", CLUSTER, "Term of the leading orchestrator."),
    Metric("recoveries", "counter", CLUSTER, "Plans put in force, by cause.", ("kind",)),
    _histogram(
        "recovery_seconds",
        LATENCY_S,
        "Parts of recoveries: to notice the loss, to load weights, to compute tokens again.",
        "part",
    ),
    Metric(
        "redis_round_trip_seconds", "gauge", CLUSTER, "The leader's last write of these numbers."
    ),
    Metric("staged_bytes", "gauge", CLUSTER, "Weights of the served model as staged.", ("model",)),
    Metric("members", "gauge", STATUS, "Live workers and orchestrators by state.", ("state",)),
    Metric("missing_places", "gauge", STATUS, "Places without a worker that is ready."),
    Metric("spares", "gauge", STATUS, "Workers without a place."),
    Metric("redis_memory_bytes", "gauge", STATUS, "Memory that Redis uses."),
    Metric(
        "admission_rejections",
        "counter",
        GATEWAY,
        "Requests that were not admitted: queue_full, draining, no_plan, rate_limit.",
        ("reason",),
    ),
    Metric(
        "http_requests",
        "counter",
        GATEWAY,
        "HTTP requests that ended.",
        ("path", "method", "status"),
    ),
    Metric(
        "http_request_duration_seconds",
        "histogram",
        GATEWAY,
        "From an HTTP request to the end of its response, streams included.",
        ("path",),
        LATENCY_S,
    ),
    Metric("http_streams_open", "gauge", GATEWAY, "Event streams that are being sent."),
    Metric("build_info", "gauge", GATEWAY, "1; the version is a label.", ("version",)),
)
BY_NAME = {metric.name: metric for metric in METRICS}
