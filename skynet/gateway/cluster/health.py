"""One sentence about a cluster: whether it serves, and if not, what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOOD, WARNING, BAD = "good", "warning", "bad"


def health(state: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """`level`, `sentence`, and `warnings`: what to mend though requests run.

    state: of `cluster_status`.
    """
    target, waits = state["target"], list(state["waiting_for"])
    name = target["name"] if target else ""
    is_ready = str((state["engine"] or {}).get("state", "")).startswith("ready")
    if not is_ready and not waits:  # all members that it needs are there
        waits.append("the orchestrator is about to put a plan in force")
    if is_ready and not waits:
        level = WARNING if warnings else GOOD
        return _health(level, f"Serving {name}{_shape(state)}.{_load(state)}", warnings)
    if target is None:
        return _health(WARNING, f"No model: {waits[0].removeprefix('no model ')}.", warnings)
    level = WARNING if _is_loading(state) else BAD
    doing = "Recovering" if state["plan"] else "Starting"
    return _health(level, f"{doing}: {name} waits, {'; '.join(waits)}.", warnings)


def unreachable(reason: str) -> dict[str, Any]:
    """The health of a cluster whose state cannot be read."""
    return _health(BAD, reason[:1].upper() + reason[1:], [])


def _health(level: str, sentence: str, warnings: list[str]) -> dict[str, Any]:
    return {"level": level, "sentence": sentence, "warnings": warnings}


def _shape(state: Mapping[str, Any]) -> str:
    plan = state["plan"]
    if not plan:
        return ""
    stages, shards = len(plan["stages"]), len(plan["stages"][0]["shards"])
    return f" on {_many(stages, 'stage')} x {_many(shards, 'shard')}"


def _load(state: Mapping[str, Any]) -> str:
    engine = state["engine"] or {}
    running, waiting = engine.get("running", 0), engine.get("waiting", 0)
    if not running and not waiting:
        return " No request runs."
    waits = f" and {waiting:,} {'waits' if waiting == 1 else 'wait'}" if waiting else ""
    runs = f"{_many(running, 'request')} {'runs' if running == 1 else 'run'}"
    return f" {runs}{waits}, {engine.get('tokens_per_s', 0):.1f} tokens/s."


def _is_loading(state: Mapping[str, Any]) -> bool:
    """Whether nothing is missing but time."""
    return bool(state["members"]) and all("loading" in text for text in state["waiting_for"])


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
