"""Counters, gauges, summaries and histograms while they are counted; names of `metric_table`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from skynet.store.metric_table import BY_NAME
from skynet.store.metrics import MAX_SERIES, Histogram, Metrics, Sums

Series = TypeVar("Series")


class Numbers:
    """The series of all metrics of the cluster, at most MAX_SERIES of each metric."""

    def __init__(self, before: Metrics | None = None) -> None:
        """`before`: counting continues from there."""
        before = before or Metrics()
        self.gauges: dict[str, dict[str, float]] = {}
        self._counters = {name: dict(series) for name, series in before.counters.items()}
        self._summaries = {
            name: {key: [item.count, item.sum] for key, item in series.items()}
            for name, series in before.summaries.items()
        }
        self._histograms = {
            name: {key: ([*item.counts], [item.sum]) for key, item in series.items()}
            for name, series in before.histograms.items()
        }

    def count(self, name: str, *labels: object, by: float = 1) -> None:
        """Add to a counter."""
        series = self._counters.setdefault(name, {})
        if (key := _key(name, labels, series)) is not None:
            series[key] = series.get(key, 0) + by

    def gauge(self, name: str, value: float, *labels: object) -> None:
        """Set the only series of a gauge."""
        series: dict[str, float] = {}
        if (key := _key(name, labels, series)) is not None:
            self.gauges[name] = {key: max(0.0, value)}

    def add(self, name: str, count: int, total: float, *labels: object) -> None:
        """Add observations to a summary."""
        series = self._summaries.setdefault(name, {})
        if (key := _key(name, labels, series)) is not None:
            item = series.setdefault(key, [0, 0.0])
            item[0] += count
            item[1] += max(0.0, total)

    def observe(self, name: str, value: float, *labels: object) -> None:
        """Add an observation to a histogram."""
        series, buckets = self._histograms.setdefault(name, {}), BY_NAME[name].buckets
        if (key := _key(name, labels, series)) is not None:
            counts, total = series.setdefault(key, ([0] * (len(buckets) + 1), [0.0]))
            counts[bisect_left(buckets, value)] += 1
            total[0] += max(0.0, value)

    def total(self, name: str) -> float:
        """A counter's value, all labels together."""
        return sum(self._counters.get(name, {}).values())

    def series(self) -> dict[str, Any]:
        """The fields of `Metrics`."""
        return {
            "counters": self._counters,
            "gauges": self.gauges,
            "summaries": {
                name: {key: Sums(int(count), total) for key, (count, total) in series.items()}
                for name, series in self._summaries.items()
            },
            "histograms": {
                name: {
                    key: Histogram(tuple(counts), total)
                    for key, (counts, (total,)) in items.items()
                }
                for name, items in self._histograms.items()
            },
        }


def _key(name: str, labels: Iterable[object], series: Mapping[str, object]) -> str | None:
    """The labels' values, joined; None if the metric has too many series already."""
    values = [str(label).replace(",", " ") for label in labels]
    if len(values) != len(BY_NAME[name].labels):
        raise ValueError(f"metric {name} has the labels {BY_NAME[name].labels}, not {values}")
    key = ",".join(values)
    return key if key in series or len(series) < MAX_SERIES else None
