"""Where a step's time goes and the last minutes, from the orchestrator's metrics.

Knows one form of metrics, a mapping with `stages` and `history`, and nothing of how they are kept.
What is missing is None: the page says that there is no data yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("compute_s", "exchange_s", "chord_s", "idle_s")  # of a stage's step
SERIES = (
    "tokens_per_s",
    "prompt_tokens_per_s",
    "running",
    "waiting",
    "first_token_p50_s",
    "first_token_p95_s",
)
MAX_POINTS = 900


def timings_of(metrics: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """For each stage its parts of a step in seconds, its shards, and which of them is slowest."""
    stages = (metrics or {}).get("stages") or []
    shown = [
        {
            "stage": int(stage["stage"]),
            **{part: _number(stage.get(part)) for part in PARTS},
            "shards": [
                {
                    "shard": int(shard["shard"]),
                    "compute_s": _number(shard.get("compute_s")),
                    "exchange_s": _number(shard.get("exchange_s")),
                }
                for shard in stage.get("shards", ())
            ],
            "slowest": _slowest(stage.get("shards", ())),
        }
        for stage in stages
    ]
    return shown or None


def history_of(metrics: Mapping[str, Any] | None) -> dict[str, list[float | None]] | None:
    """The newest points, each a list of `SERIES`, by their time.

    By time rather than in a list: a new point is then one addition to the page's copy.
    """
    points = ((metrics or {}).get("history") or [])[-MAX_POINTS:]
    shown = {
        f"{float(point['at']):.0f}": [_number(point.get(name)) for name in SERIES]
        for point in points
    }
    return shown or None


def _slowest(shards: Sequence[Mapping[str, Any]]) -> int | None:
    """The shard that the others wait for: it computes longest. None if there is no other."""
    timed = [shard for shard in shards if _number(shard.get("compute_s")) is not None]
    if len(timed) < 2:
        return None
    return int(max(timed, key=lambda shard: float(shard["compute_s"]))["shard"])


def _number(value: Any) -> float | None:
    """JSON has no NaN and no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 6)
