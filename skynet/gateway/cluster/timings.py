"""Where each stage's time goes and the last minutes, from the orchestrator's metrics. Pure.

What is missing is None: the page says that there is no data yet.
"""

from __future__ import annotations

import math
from typing import Any

from skynet.store.metrics import Metrics, StageTime

PARTS = ("compute", "exchange", "chord", "idle")  # of a stage's time; shares from 0 to 1
SERIES = (
    "generation_tokens_per_s",
    "prompt_tokens_per_s",
    "running",
    "waiting",
    "first_token_p50_s",
    "first_token_p95_s",
)


def timings_of(metrics: Metrics | None) -> list[dict[str, Any]] | None:
    """For each stage the shares of its time, its shards', and which of them is slowest."""
    stages = metrics.stages if metrics else ()
    shown = [
        {
            "stage": stage.stage,
            **{part: _number(getattr(stage, part)) for part in PARTS},
            "shards": [
                {
                    "shard": shard.shard,
                    "compute": _number(shard.compute),
                    "exchange": _number(shard.exchange),
                }
                for shard in stage.shards
            ],
            "slowest": _slowest(stage),
        }
        for stage in stages
    ]
    return shown or None


def history_of(metrics: Metrics | None) -> dict[str, list[float | None]] | None:
    """The samples, each a list of `SERIES`, by their time.

    By time rather than in a list: a new sample is then one addition to the page's copy.
    """
    samples = metrics.samples if metrics else ()
    shown = {
        f"{sample.at:.0f}": [_number(getattr(sample, name)) for name in SERIES]
        for sample in samples
    }
    return shown or None


def _slowest(stage: StageTime) -> int | None:
    """The shard that the others wait for: it computes longest. None: no other, or no work."""
    busy = [shard for shard in stage.shards if shard.compute]
    return stage.slowest if len(busy) > 1 else None


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 6)
