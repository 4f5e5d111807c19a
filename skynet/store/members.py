"""Leases: who is alive, what it holds and what it does. One key a worker, with a time to live.

A lease runs out `lease_s` after its last renewal. A process that dies is noticed sooner: Redis
sees its connection close, and `broken` tells.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import redis

from skynet.wire import keys

STARTING, SPARE, LOADING, READY, FAILED = "starting", "spare", "loading", "ready", "failed"


@dataclass
class Member:
    """One live worker as it describes itself.

    speed: bytes of weights that one of its threads gets through in a second, measured at the start.
    round_trip_s: a command to Redis and back, the least seen.
    """

    id: str  # of this process, never used again
    node: str  # Celery's node name
    address: str  # its place: "stage0.shard1", "orchestrator", or "" while it has none
    host: str
    pid: int
    state: str = STARTING  # starting, spare, loading, ready, failed; orchestrator: leading, standby
    pinned: str = ""  # the address given with -Q, the only one it takes
    queue: str = ""  # what it consumes
    epoch: int = 0  # of the plan it has taken
    prepared: int = 0  # epoch of the plan that it has loaded beside the one in force
    leaving: bool = False  # was told to end, and works on until another has its place
    device: str = "cpu"
    cores: int = 0  # of its host
    threads: int = 0
    asked_threads: int = 0  # 0: its share of the cores
    speed: float = 0.0
    round_trip_s: float = 0.0
    weight_bytes: int = 0  # what its slice takes, or will take
    loaded_bytes: int = 0  # of that, while it loads
    kept_bytes: int = 0  # of that, what it had already
    load_s: float = 0.0  # how long that took
    resident_bytes: int = 0
    free_bytes: int = 0  # memory of the host that is free
    steps: int = 0
    problem: str = ""
    connection: int = 0  # Redis's number for the connection that renews the lease
    joined: float = 0.0  # unix time
    renewed: float = 0.0  # unix time

    @classmethod
    def from_json(cls, text: bytes) -> Member:
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in json.loads(text).items() if key in known})


class Members:
    """The live workers of one Redis."""

    def __init__(self, client: redis.Redis, lease_s: float) -> None:
        self.client = client
        self.lease_s = lease_s
        self._can_list = True

    def renew(self, member: Member) -> None:
        """Say that `member` lives, for another `lease_s` seconds.

        The client should be one connection: its number is part of the lease.
        """
        started = time.perf_counter()
        seconds, micros = self.client.time()
        trip = time.perf_counter() - started
        member.round_trip_s = min(member.round_trip_s or trip, trip)
        member.renewed = seconds + micros / 1e6
        member.joined = member.joined or member.renewed
        connection = self._write(member)
        if connection != member.connection:  # a new one: say so at once
            member.connection = connection
            self._write(member)

    def _write(self, member: Member) -> int:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.client_id()
            pipe.set(
                keys.member_key(member.id),
                json.dumps(asdict(member)),
                px=int(self.lease_s * 1000),
            )
            pipe.zadd(keys.MEMBERS_KEY, {member.id: member.renewed})
            return int(pipe.execute()[0])

    def leave(self, member_id: str) -> None:
        """Give the lease back at once."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.delete(keys.member_key(member_id))
            pipe.zrem(keys.MEMBERS_KEY, member_id)
            pipe.execute()

    def all(self) -> list[Member]:
        """All members whose lease holds, by address, then by when they joined."""
        ids: list[bytes] = self.client.zrange(keys.MEMBERS_KEY, 0, -1)  # type: ignore[assignment]
        if not ids:
            return []
        texts: Iterable[bytes | None] = self.client.mget(  # type: ignore[assignment]
            [keys.member_key(item.decode()) for item in ids]
        )
        found = list(zip(ids, texts, strict=True))
        gone = [item for item, text in found if text is None]
        if gone:  # by Redis's clock, not by anybody's own
            seconds, _ = self.client.time()
            # Not by id: one of them may have come back this moment.
            self.client.zremrangebyscore(keys.MEMBERS_KEY, 0, seconds - 2 * self.lease_s)
        members = [Member.from_json(text) for _, text in found if text is not None]
        return sorted(members, key=lambda m: (not m.address, m.address, m.joined, m.id))

    def broken(self, members: Iterable[Member]) -> set[str]:
        """Ids of members whose connection Redis has seen close, as far as Redis tells.

        A member that lives opens another within a moment, so that only one that stays broken is
        dead.
        """
        asked = [member for member in members if member.connection]
        if not asked or not self._can_list:
            return set()
        try:
            listed: Any = self.client.client_list(
                client_id=[str(member.connection) for member in asked]
            )
        except redis.ResponseError:  # a managed Redis may forbid it: leases tell, only later
            self._can_list = False
            return set()
        connected = {int(entry["id"]) for entry in listed}
        return {member.id for member in asked if member.connection not in connected}
