"""Resources that a cluster uses, and whether they return to their level after the attack."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import dataclass

import redis

from skynet.wire import keys as redis_keys
from tests.chaos.cluster import ChaosCluster

SETTLE_S = 150.0  # keys of steps have a time to live
MEMORY_SHARE, MEMORY_BYTES = 0.1, 4 * 2**20  # allowed growth of Redis: script cache, event log
# Of a worker: oneDNN caches kernels for each number of rows. A tiny model's worker grew by 180 MiB
# over 2000 steps of mixed lengths, and then no more; memray showed no allocation of SkyNet's.
RSS_SHARE, RSS_BYTES = 0.2, 192 * 2**20
MORE_CLIENTS = 4  # connections that are opened when first needed
GATEWAY_CLIENTS = 16  # the same of a gateway, which has as many threads
UNIQUE = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27,}|[0-9a-f]{32,}")
# Names of keys after the prefix.
TRANSIENT = ("celery-task-meta-", "request:", "requests:open", "plan:next")
# Counters, logs and bindings, of which one exists from the first use on.
ONCE = ("rebalance", "_kombu.binding")


@dataclass(frozen=True)
class Level:
    """Resources in use. Keys are counted by kind, their names without unique ids."""

    keys: Counter[str]
    used_bytes: int
    clients: int
    resident: dict[str, int]
    files: dict[str, int]

    def __str__(self) -> str:
        largest = max(self.resident.values(), default=0)
        return (
            f"{self.keys.total()} keys, Redis {self.used_bytes / 2**20:.1f} MiB, "
            f"{self.clients} clients, largest worker {largest / 2**20:.0f} MiB, "
            f"most open files {max(self.files.values(), default=0)}"
        )


def measure(cluster: ChaosCluster, client: redis.Redis) -> Level:
    """The current level, without records of requests."""
    info = client.info()
    sizes = cluster.sizes()
    return Level(
        _kinds(client),
        info["used_memory"],
        info["connected_clients"],
        {name: size for name, (size, _) in sizes.items()},
        {name: number for name, (_, number) in sizes.items()},
    )


def forget_requests(client: redis.Redis) -> None:
    """Delete records and results, which expire after a day.

    Also reports of tiles that the harness corrupted and restored, which expire after an hour.
    """
    for pattern in (
        redis_keys.key("celery-task-meta-*"),
        redis_keys.request_key("*"),
        redis_keys.bad_tiles_key("*"),
    ):
        batch = list(client.scan_iter(pattern, count=1000))
        for start in range(0, len(batch), 500):
            client.delete(*batch[start : start + 500])


def settled(cluster: ChaosCluster, client: redis.Redis, before: Level) -> tuple[Level, list[str]]:
    """Wait for the level to return to `before`; the level, and leaks if it does not."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        now = measure(cluster, client)
        leaks = compare(before, now)
        if not leaks or time.monotonic() > deadline:
            return now, leaks
        time.sleep(0.5)


def compare(before: Level, now: Level) -> list[str]:
    """Leaks: growth beyond the limits."""
    leaks = []
    for kind in sorted(before.keys.keys() | now.keys.keys()):
        if before.keys[kind] != now.keys[kind]:
            leaks.append(f"keys {kind}: {before.keys[kind]} before, {now.keys[kind]} after")
    if now.used_bytes > before.used_bytes * (1 + MEMORY_SHARE) + MEMORY_BYTES:
        leaks.append(f"Redis: {before.used_bytes} bytes before, {now.used_bytes} after")
    gateways = [name for name in now.files if name.startswith("gateway-")]
    if now.clients > before.clients + MORE_CLIENTS + GATEWAY_CLIENTS * len(gateways):
        leaks.append(f"Redis: {before.clients} clients before, {now.clients} after")
    maximum = max(before.files.values(), default=0)
    for name, number in now.files.items():
        if number > maximum + (GATEWAY_CLIENTS if name in gateways else MORE_CLIENTS):
            leaks.append(f"{name}: {number} open files, maximum {maximum} before")
    # A spare that takes a place grows to its predecessor's size, so compare with the largest.
    maximum = max(before.resident.values(), default=0)
    for name, size in now.resident.items():
        if size > maximum * (1 + RSS_SHARE) + RSS_BYTES:
            leaks.append(f"{name}: {size >> 20} MiB resident, maximum {maximum >> 20} before")
    return leaks


def _kinds(client: redis.Redis) -> Counter[str]:
    found = (key.decode(errors="replace") for key in client.scan_iter(count=1000))
    names = (name.removeprefix(redis_keys.key("")) for name in found)
    kinds = Counter[str]()
    for name in names:
        if not name.startswith((*TRANSIENT, *ONCE)):
            kinds[UNIQUE.sub("<id>", _without_numbers(name))] += 1
    return kinds


def _without_numbers(name: str) -> str:
    """The kind of a key that belongs to a step."""
    return re.sub(r"^(step|hidden|chord|member):.*", r"\1:<id>", name)
