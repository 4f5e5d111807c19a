"""`/cluster/metrics`: a cluster's numbers in Prometheus' text format, from any gateway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from skynet.store.metric_table import CLUSTER, METRICS, PREFIX, STATUS, Metric
from skynet.store.metrics import Histogram, Metrics, Sums

Status = Mapping[str, Any]
Clusters = Mapping[str, tuple[Metrics | None, Status]]

MODEL = "model_name"  # the label of every series, as in vLLM


def cluster_exposition(metrics: Metrics | None, status: Status) -> bytes:
    """Of one cluster.

    metrics: None: no leader has written any.
    status: the output of `skynet status --json`.
    """
    return clusters_exposition({_model_of(status): (metrics, status)})


def clusters_exposition(clusters: Clusters) -> bytes:
    """Of several, by the name of their model, which is a label of every series."""
    registry = CollectorRegistry()
    registry.register(_Clusters(clusters))
    return generate_latest(registry)


def _model_of(status: Status) -> str:
    return str((status.get("target") or {}).get("name", ""))


class _Clusters(Collector):
    def __init__(self, clusters: Clusters) -> None:
        self.clusters = clusters

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            if metric.source in (CLUSTER, STATUS):
                yield _family(metric, self._series(metric))

    def _series(self, metric: Metric) -> Iterable[tuple[list[str], Any]]:
        """The values of the labels, and the value."""
        for model, (metrics, status) in self.clusters.items():
            if metric.source == STATUS:
                series: Mapping[str, Any] = _of_status(metric.name, status)
            else:
                series = _of_metrics(metric, metrics, status)
            for key, value in series.items():
                yield [model, *(key.split(",") if metric.labels else ())], value


def _family(metric: Metric, series: Iterable[tuple[list[str], Any]]) -> Family:
    name, labels = PREFIX + metric.name, (MODEL, *metric.labels)
    if metric.kind == "counter":
        family: Any = CounterMetricFamily(name, metric.help, labels=labels)
    elif metric.kind == "gauge":
        family = GaugeMetricFamily(name, metric.help, labels=labels)
    elif metric.kind == "summary":
        family = SummaryMetricFamily(name, metric.help, labels=labels)
    else:
        family = HistogramMetricFamily(name, metric.help, labels=labels)
    for values, value in series:
        if len(values) != len(labels):  # of another version
            continue
        if isinstance(value, Sums):
            family.add_metric(values, value.count, value.sum)
        elif isinstance(value, Histogram):
            family.add_metric(values, _cumulative(metric.buckets, value), value.sum)
        else:
            family.add_metric(values, value)
    return family


def _cumulative(limits: Iterable[float], histogram: Histogram) -> list[tuple[str, float]]:
    total, buckets = 0, []
    for limit, count in zip((*limits, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append((floatToGoString(limit), float(total)))
    return buckets


def _of_metrics(metric: Metric, metrics: Metrics | None, status: Status) -> Mapping[str, Any]:
    """What the leader wrote; its gauges only while there is one, and 0 of what never happened."""
    if metric.kind == "gauge":
        return metrics.gauges.get(metric.name, {}) if metrics and status.get("engine") else {}
    metrics = metrics or Metrics()
    if metric.kind == "counter":
        return metrics.counters.get(metric.name) or ({} if metric.labels else {"": 0.0})
    if metric.kind == "summary":
        return metrics.summaries.get(metric.name, {})
    empty = {} if metric.labels else {"": Histogram((0,) * (len(metric.buckets) + 1))}
    return metrics.histograms.get(metric.name) or empty


def _of_status(name: str, status: Status) -> Mapping[str, float]:
    members = status.get("members", ())
    if name == "members":
        return Counter(member["state"] for member in members)
    if name == "missing_places":
        return {"": len(status.get("missing", ()))}
    if name == "spares":
        return {"": sum(_is_spare(member) for member in members)}
    memory = status.get("redis_memory_bytes")
    return {} if memory is None else {"": memory}


def _is_spare(member: Mapping[str, Any]) -> bool:
    return not member["address"] and not member["leaving"]
