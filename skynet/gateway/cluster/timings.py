"""Where each stage's time goes and the last minutes, from the orchestrator's metrics.

Knows two fields of them: `stages`, shares of the last seconds, and `samples`, the oldest first.
What is missing is None: the page says that there is no data yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

PARTS = ("compute", "exchange", "chord", "idle")  # of a stage's time; shares from 0 to 1
SERIES = (
    "generation_tokens_per_s",
    "prompt_tokens_per_s",
    "running",
    "waiting",
    "first_token_p50_s",
    "first_token_p95_s",
)
MAX_POINTS = 900


def timings_of(metrics: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """For each stage the shares of its time, its shards', and which of them is slowest."""
    stages = (metrics or {}).get("stages") or ()
    shown = [
        {
            "stage": int(stage["stage"]),
            **{part: _number(stage.get(part)) for part in PARTS},
            "shards": [
                {
                    "shard": int(shard["shard"]),
                    "compute": _number(shard.get("compute")),
                    "exchange": _number(shard.get("exchange")),
                }
                for shard in stage.get("shards", ())
            ],
            "slowest": _slowest(stage),
        }
        for stage in stages
    ]
    return shown or None


def history_of(metrics: Mapping[str, Any] | None) -> dict[str, list[float | None]] | None:
    """The newest samples, each a list of `SERIES`, by their time.

    By time rather than in a list: a new sample is then one addition to the page's copy.
    """
    samples = list((metrics or {}).get("samples") or ())[-MAX_POINTS:]
    shown = {
        f"{float(sample['at']):.0f}": [_number(sample.get(name)) for name in SERIES]
        for sample in samples
    }
    return shown or None


def _slowest(stage: Mapping[str, Any]) -> int | None:
    """The shard that the others wait for: it computes longest. None: no other, or no work."""
    busy = [shard for shard in stage.get("shards", ()) if _number(shard.get("compute"))]
    return int(stage["slowest"]) if len(busy) > 1 else None


def _number(value: Any) -> float | None:
    """JSON has no NaN and no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 6)
