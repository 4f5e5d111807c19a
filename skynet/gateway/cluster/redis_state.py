"""The state of a cluster's Redis: memory, eviction, persistence, round trip."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import redis

from skynet.store.connection import server_info

NOEVICTION = "noeviction"
FULL = 0.9  # of the memory limit


def read_redis(client: redis.Redis) -> dict[str, Any]:
    """Numbers that Redis tells; None where it does not."""
    started = time.perf_counter()
    client.ping()
    trip = time.perf_counter() - started
    memory, persistence = server_info(client, "memory"), server_info(client, "persistence")
    server = server_info(client, "server")
    return {
        "memory_bytes": memory.get("used_memory"),
        "limit_bytes": memory.get("maxmemory") or None,
        "policy": memory.get("maxmemory_policy"),
        "append_only": _flag(persistence.get("aof_enabled")),
        "append_only_status": persistence.get("aof_last_write_status"),
        "round_trip_s": round(trip, 5),
        "version": server.get("valkey_version") or server.get("redis_version"),
    }


def warnings_of(state: Mapping[str, Any]) -> list[str]:
    """What to mend in Redis's configuration; `state` of `read_redis`."""
    found = []
    policy = state["policy"]
    if policy not in (None, NOEVICTION):
        found.append(
            f"Redis may delete weights and requests (maxmemory-policy {policy}): set it to "
            f"{NOEVICTION}"
        )
    used, limit = state["memory_bytes"], state["limit_bytes"]
    if used and limit and used > FULL * limit:
        found.append(f"Redis has used {used / limit:.0%} of its maxmemory: raise it")
    if state["append_only"] and state["append_only_status"] not in (None, "ok"):
        found.append("Redis cannot write its append-only file: look at its log and its disk")
    return found


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(int(value))
