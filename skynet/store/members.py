"""Leases: who is alive, what it holds and what it does. One key a worker, with a time to live."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

import redis

from skynet import names


@dataclass
class Member:
    """One live worker as it describes itself."""

    node: str  # Celery's node name, unique in the cluster
    address: str  # "stage0.shard1" or "orchestrator"
    host: str
    pid: int
    state: str = "starting"  # starting, waiting, loading, ready, failed
    epoch: int = 0  # of the plan it has loaded
    device: str = "cpu"
    threads: int = 0
    weight_bytes: int = 0  # what its slice takes, or will take
    loaded_bytes: int = 0  # of that, while it loads
    load_s: float = 0.0  # how long that took
    resident_bytes: int = 0
    free_bytes: int = 0  # memory of the host that is free
    steps: int = 0
    problem: str = ""
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

    def renew(self, member: Member) -> None:
        """Say that `member` lives, for another `lease_s` seconds."""
        member.renewed = time.time()
        with self.client.pipeline(transaction=False) as pipe:
            pipe.set(
                names.member_key(member.node),
                json.dumps(asdict(member)),
                px=int(self.lease_s * 1000),
            )
            pipe.zadd(names.MEMBERS_KEY, {member.node: member.renewed})
            pipe.execute()

    def leave(self, node: str) -> None:
        """Give the lease back at once."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.delete(names.member_key(node))
            pipe.zrem(names.MEMBERS_KEY, node)
            pipe.execute()

    def all(self) -> list[Member]:
        """All members whose lease holds, by address."""
        nodes: list[bytes] = self.client.zrange(names.MEMBERS_KEY, 0, -1)  # type: ignore[assignment]
        if not nodes:
            return []
        texts: Iterable[bytes | None] = self.client.mget(  # type: ignore[assignment]
            [names.member_key(node.decode()) for node in nodes]
        )
        found = list(zip(nodes, texts, strict=True))
        gone = [node for node, text in found if text is None]
        if gone:  # by Redis's clock, not by anybody's own
            self.client.zrem(names.MEMBERS_KEY, *gone)
        members = [Member.from_json(text) for _, text in found if text is not None]
        return sorted(members, key=lambda member: (member.address, member.node))
