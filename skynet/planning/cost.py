"""The members as candidates for a plan; the plan's predicted bytes per member and seconds to load.

Pure. The seconds of steps and tokens are in timing.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skynet.architecture.architecture import Architecture
from skynet.planning.memory import shard_weight_bytes, slot_bytes
from skynet.planning.plan import Plan

LOAD_BYTES_PER_S = 300e6
DEFAULT_SPEED = 5e9
DEFAULT_FEW_ROWS, DEFAULT_MANY_ROWS = 10e9, 16e9
WORKER_BYTES = 300 * 2**20  # torch, Celery and activations, besides weights and KV cache


@dataclass(frozen=True)
class Candidate:
    """A member, as a candidate for an address.

    pinned: the only address it takes, or "".
    threads: its configured number of threads; 0: its share of the host's cores.
    free_bytes: memory of its host that it may use, including its current weights.
    speed: bytes of weights per second with one thread, in products with one row.
    few_rows, many_rows: multiply-adds per second with one thread, in products with some rows and
        with hundreds.
    trips: measured round trips of direct links in seconds, by the peer's host.
    """

    id: str
    host: str = ""
    pinned: str = ""
    cores: int = 1
    threads: int = 0
    speed: float = DEFAULT_SPEED
    few_rows: float = DEFAULT_FEW_ROWS
    many_rows: float = DEFAULT_MANY_ROWS
    round_trip_s: float = 1e-4
    free_bytes: int = 2**62
    leaving: bool = False
    joined: float = 0.0
    device: str = "cpu"
    trips: Mapping[str, float] = field(default_factory=dict, hash=False)


def cores_of(workers: Sequence[Candidate]) -> list[float]:
    """The cores that each worker computes on; workers of one host share its cores."""
    neighbours = Counter(worker.host or worker.id for worker in workers)

    def cores(worker: Candidate) -> float:
        share = worker.cores / neighbours[worker.host or worker.id]
        return min(worker.threads, share) if worker.threads else share

    return [cores(worker) for worker in workers]


def stage_cores(workers: Sequence[Candidate], num_shards: int) -> list[float]:
    """The cores that each worker computes on while the other stages wait, as for one request.

    A worker has as many threads as its share of the host's cores has, but one at least; those of a
    stage divide the cores.
    """
    hosts = [worker.host or worker.id for worker in workers]
    neighbours = Counter(hosts)
    cores = []
    for at, worker in enumerate(workers):
        first = at - at % num_shards
        beside = hosts[first : first + num_shards].count(hosts[at])
        threads = worker.threads or max(1, worker.cores // neighbours[hosts[at]])
        cores.append(min(threads, worker.cores / beside))
    return cores


def crowded_hosts(workers: Sequence[Candidate]) -> set[str]:
    """Hosts whose workers have more threads than cores: they sleep at sums instead of polling."""
    threads: Counter[str] = Counter()
    cores: dict[str, int] = {}
    neighbours = Counter(worker.host or worker.id for worker in workers)
    for worker in workers:
        host = worker.host or worker.id
        threads[host] += worker.threads or max(1, worker.cores // neighbours[host])
        cores[host] = worker.cores
    return {host for host in threads if threads[host] > cores[host]}


def shared_speeds(workers: Sequence[Candidate]) -> list[float]:
    """Bytes of weights per second of each worker."""
    pairs = zip(workers, cores_of(workers), strict=True)
    return [(worker.speed or DEFAULT_SPEED) * cores for worker, cores in pairs]


def shard_weights(workers: Sequence[Candidate]) -> list[float]:
    """Speeds relative to the fastest, rounded to quarters: small differences are noise."""
    speeds = shared_speeds(workers)
    fastest = max(speeds)
    return [max(0.25, round(4 * speed / fastest) / 4) for speed in speeds]


def memory_weights(workers: Sequence[Candidate]) -> list[float]:
    """Memory relative to the largest, in sixteenths; workers of one host share its memory."""
    neighbours = Counter(worker.host or worker.id for worker in workers)
    room = [
        max(1.0, worker.free_bytes / neighbours[worker.host or worker.id] - WORKER_BYTES)
        for worker in workers
    ]
    return [max(1, int(16 * num_bytes / max(room))) / 16 for num_bytes in room]


def overfull(arch: Architecture, plan: Plan, workers: Sequence[Candidate]) -> str:
    """The host whose memory is too small for full KV slots, with the numbers; "" if none."""
    needs: Counter[str] = Counter()
    room: dict[str, int] = {}
    for (stage, shard), worker in zip(plan.addresses(), workers, strict=True):
        host = worker.host or worker.id
        weights = shard_weight_bytes(arch, plan, stage, shard)
        needs[host] += weights + slot_bytes(arch, plan, stage, shard) + WORKER_BYTES
        room[host] = max(room.get(host, 0), worker.free_bytes)
    for host, need in needs.items():
        if need > room[host]:
            return f"{host} would need {need / 2**20:.0f} MiB and has {room[host] / 2**20:.0f} MiB"
    return ""


def load_s(arch: Architecture, plan: Plan, old: Plan | None, rate: float = 0.0) -> float:
    """Predicted seconds until the slowest worker has loaded its slice; it reuses its old one.

    rate: measured bytes per second, or 0.
    """
    before = old.placed() if old else {}
    longest = 0.0
    for worker, (stage, shard) in plan.placed().items():
        missing = float(shard_weight_bytes(arch, plan, stage, shard))
        if old is not None and worker in before and old.model == plan.model:
            missing *= 1 - _reused_share(old, before[worker], plan, (stage, shard))
        longest = max(longest, missing / (rate or LOAD_BYTES_PER_S))
    return longest


def _reused_share(old: Plan, there: tuple[int, int], new: Plan, here: tuple[int, int]) -> float:
    """The approximate share of a slice that its worker already has."""
    if (old.dtype, old.num_layers) != (new.dtype, new.num_layers):
        return 0.0
    layers, others = new.stages[here[0]].layers, old.stages[there[0]].layers
    part, other = new.stages[here[0]].shards[here[1]], old.stages[there[0]].shards[there[1]]
    common = layers.overlap(others).size / layers.size
    if part.columns.size:
        return common * part.columns.overlap(other.columns).size / part.columns.size
    return common * part.heads.overlap(other.heads).size / part.heads.size
