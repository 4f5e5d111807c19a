"""The cluster's numbers in Redis: one key, which the leading orchestrator writes.

Counters and histograms continue under the next leader. The key is not in Redis's append-only file:
a leader that outlives a restart of Redis writes it again, otherwise counting starts over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import redis

from skynet.errors import WireError
from skynet.store.leader import GUARD, fenced
from skynet.store.metric_table import BY_NAME
from skynet.store.transient import TRANSIENT
from skynet.wire import keys
from skynet.wire.typed_json import Amount, Count, read_json, write_json

LIFETIME_S = 3600
MAX_BYTES = 2**20
MAX_SERIES = 1000  # label values of one metric
SAMPLE_S, MAX_SAMPLES = 5.0, 180  # 15 minutes
MAX_RECOVERIES = 20

# KEYS: leader, metrics. ARGV: fence, JSON, time to live in ms.
# Replies whether the write is kept out of the append-only file.
WRITE = (
    TRANSIENT
    + GUARD
    + "redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]); return transient and 1 or 0"
)


@dataclass(frozen=True)
class Sums:
    """A summary: how many observations, and their sum."""

    count: Count = 0
    sum: Amount = 0.0


@dataclass(frozen=True)
class Histogram:
    """Observations by bucket of `metric_table`, and one bucket more for those above all limits."""

    counts: tuple[Count, ...]
    sum: Amount = 0.0


@dataclass(frozen=True)
class Sample:
    """The cluster over SAMPLE_S; None: nothing to measure.

    at: its end, unix seconds by Redis's clock.
    step_s: mean time of a step, from its sending to its results.
    """

    at: Amount
    prompt_tokens_per_s: Amount = 0.0
    generation_tokens_per_s: Amount = 0.0
    running: Count = 0
    waiting: Count = 0
    first_token_p50_s: Amount | None = None
    first_token_p95_s: Amount | None = None
    step_s: Amount | None = None


@dataclass(frozen=True)
class ShardTime:
    """Shares of the last SAMPLE_S, from 0 to 1, in which a shard computed and waited for peers."""

    shard: Count
    compute: Amount
    exchange: Amount


@dataclass(frozen=True)
class StageTime:
    """Where a stage's last SAMPLE_S went: four shares, of sum 1.

    compute, exchange: of its slowest shard, the one that computes longest.
    chord: messages between its spans, by the measured cost of a chord.
    idle: the rest: other stages' turns, the sampler, no requests.
    """

    stage: Count
    compute: Amount
    exchange: Amount
    chord: Amount
    idle: Amount
    slowest: Count
    shards: tuple[ShardTime, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """A plan put in force and the interruption that it ended; 0: no such part.

    kind: `lost` (a worker), `failed` (a step), `leader` (a new one), `planned` (no interruption
        was forced: a start, a join, a leave, another target).
    at: when all shards were ready, unix seconds by Redis's clock.
    notice_s: from the last sign of life to the notice. load_s: from the notice until all shards
        were ready. replay_s: from there until every running request had its next result.
    """

    kind: str
    at: Amount
    epoch: Count
    notice_s: Amount = 0.0
    load_s: Amount = 0.0
    replay_s: Amount = 0.0


@dataclass(frozen=True)
class Seen:
    """What a member had reported when it was last counted."""

    compute_s: Amount
    exchange_s: Amount
    spans: Count


@dataclass(frozen=True)
class Metrics:
    """All numbers of a cluster.

    at: when they were written, unix seconds by Redis's clock.
    counters, gauges, summaries, histograms: by name (of `metric_table`), then by the values of its
        labels, joined by commas; "" without labels.
    stages: the last SAMPLE_S by stage. samples: the last 15 minutes, oldest first.
    recoveries: the newest MAX_RECOVERIES, oldest first.
    seen: by member.
    """

    at: Amount = 0.0
    counters: dict[str, dict[str, Amount]] = field(default_factory=dict)
    gauges: dict[str, dict[str, Amount]] = field(default_factory=dict)
    summaries: dict[str, dict[str, Sums]] = field(default_factory=dict)
    histograms: dict[str, dict[str, Histogram]] = field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    samples: tuple[Sample, ...] = ()
    recoveries: tuple[Recovery, ...] = ()
    seen: dict[str, Seen] = field(default_factory=dict)

    def counter(self, name: str, *labels: str) -> float:
        """A counter's value, 0 if it never counted; without labels the sum over all of them."""
        series = self.counters.get(name, {})
        return series.get(",".join(labels), 0.0) if labels else sum(series.values())


def parse(text: bytes) -> Metrics:
    """The value of the key. Histograms of other buckets, as of another version, are left out.

    Raises:
        WireError: something else.
    """
    if len(text) > MAX_BYTES:
        raise WireError(f"{keys.metrics_key()} has {len(text)} bytes, at most {MAX_BYTES}")
    metrics = read_json(Metrics, text, keys.metrics_key())
    for name, series in list(metrics.histograms.items()):
        buckets = BY_NAME[name].buckets if name in BY_NAME else ()
        if any(len(item.counts) != len(buckets) + 1 for item in series.values()):
            del metrics.histograms[name]
    return metrics


class MetricsStore:
    """The key of one Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._write = client.register_script(WRITE)

    def read(self) -> Metrics | None:
        """The numbers that a leader wrote in the last hour, or None.

        Raises:
            WireError: the key holds something else.
        """
        text = cast("bytes | None", self.client.get(keys.metrics_key()))
        return None if text is None else parse(text)

    def write(self, metrics: Metrics, fence: str) -> bool:
        """Write them; whether the append-only file is spared.

        Raises:
            Fenced: the caller is not the leader any more.
        """
        text = write_json(Metrics, metrics)
        if len(text) > MAX_BYTES:
            raise WireError(f"metrics of {len(text)} bytes, at most {MAX_BYTES}")
        arguments: list[Any] = [fence, text, LIFETIME_S * 1000]
        with fenced():
            return bool(self._write(keys=[keys.leader_key(), keys.metrics_key()], args=arguments))
