"""The live workers and their states: one key with a time to live for each.

A lease expires `lease_s` after its last renewal. `broken` notices a dead process sooner, by its
closed connection.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import redis

from skynet.errors import WireError
from skynet.wire import keys
from skynet.wire.protocol import PROTOCOL, UNVERSIONED
from skynet.wire.typed_json import Amount, Count, parse_object, read_json

logger = logging.getLogger(__name__)

STARTING, SPARE, LOADING, READY, FAILED = "starting", "spare", "loading", "ready", "failed"


@dataclass(frozen=True)
class LinkState:
    """How a shard exchanges partials with one of its peers: by "unix", "tcp" or "redis"."""

    peer: str  # its address
    kind: str
    round_trip_s: Amount = 0.0


@dataclass
class Member:
    """One live worker as it describes itself.

    speed: bytes of weights that one thread multiplies by one row in a second, measured at the
        start, as the others are.
    few_rows_speed, many_rows_speed: multiply-adds of one thread in a second, in products with some
        rows and with hundreds.
    round_trip_s: minimum of the measured round trips to Redis.
    """

    id: str  # of the process, never reused
    node: str  # Celery's node name
    address: str  # its place: "stage0.shard1", "orchestrator", or "": none
    host: str
    pid: Count
    state: str = STARTING  # starting, spare, loading, ready, failed; orchestrator: leading, standby
    pinned: str = ""  # the address given with -Q, the only one it takes
    queue: str = ""  # the queue it consumes
    epoch: Count = 0  # of the plan in which it took its place
    prepared: Count = 0  # epoch of the next plan, once its slice is loaded
    leaving: bool = False  # works on until another worker has its place
    device: str = "cpu"
    cores: Count = 0  # of its host
    threads: Count = 0
    asked_threads: Count = 0  # SKYNET_THREADS; 0: a share of the cores
    speed: Amount = 0.0
    few_rows_speed: Amount = 0.0
    many_rows_speed: Amount = 0.0
    round_trip_s: Amount = 0.0
    weight_bytes: Count = 0  # size of its slice, loaded or not
    loaded_bytes: Count = 0  # of that, fetched so far
    kept_bytes: Count = 0  # of that, reused from the slice before
    load_s: Amount = 0.0  # time to load it
    keeps_tiles: bool = False  # the tiles of its slice are in its machine's cache
    resident_bytes: Count = 0
    free_bytes: Count = 0  # free memory of its device
    steps: Count = 0
    compute_s: Amount = 0.0  # of its spans so far
    exchange_s: Amount = 0.0  # that it has waited for its peers' partials
    problem: str = ""
    connection: Count = 0  # Redis's client id of the connection that renews the lease
    joined: Amount = 0.0  # unix time
    renewed: Amount = 0.0  # unix time
    machine: str = ""  # tells machines apart; containers of one machine have the same
    unix_socket: bool = False  # whether it accepts links by its Unix socket
    tcp_address: str = ""  # where it accepts links by TCP
    exchange_dtype: str = "auto"  # SKYNET_EXCHANGE_DTYPE: what its partials travel in
    links: tuple[LinkState, ...] = ()  # to its peers in `epoch`; the shard of higher number decides
    trips: dict[str, Amount] = field(default_factory=dict)  # least round trips of links, by host
    protocol: Count = PROTOCOL  # see skynet/wire/protocol.py

    @classmethod
    def from_json(cls, text: bytes) -> Member:
        """A member's record. Fields of a later version are ignored.

        Raises:
            WireError: anything else.
        """
        member = read_json(cls, text, "the record")
        if "protocol" not in parse_object(text, "the record"):  # of before there was a version
            return replace(member, protocol=UNVERSIONED)
        return member


class Members:
    """The live workers of one Redis."""

    def __init__(self, client: redis.Redis, lease_s: float) -> None:
        self.client = client
        self.lease_s = lease_s
        self.sees_connections = True  # until Redis refuses to list them

    def renew(self, member: Member) -> None:
        """Renew the lease of `member` for `lease_s` seconds.

        The client should use a single connection: its id is part of the lease.
        """
        started = time.perf_counter()
        seconds, micros = self.client.time()
        trip = time.perf_counter() - started
        member.round_trip_s = min(member.round_trip_s or trip, trip)
        member.renewed = seconds + micros / 1e6
        member.joined = member.joined or member.renewed
        connection = self._write(member)
        if connection != member.connection:  # tell `broken` about the new one at once
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
            pipe.zadd(keys.members_key(), {member.id: member.renewed})
            # Members forget the dead, which clients may not. By the clock of Redis, and not by id:
            # an expired member may be back by now.
            pipe.zremrangebyscore(keys.members_key(), 0, member.renewed - 2 * self.lease_s)
            number, *others = pipe.execute(raise_on_error=False)
        for reply in others:
            if isinstance(reply, Exception):
                raise reply
        return 0 if isinstance(number, Exception) else int(number)  # 0: forbidden by this Redis

    def leave(self, member_id: str) -> None:
        """End the lease at once."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.delete(keys.member_key(member_id))
            pipe.zrem(keys.members_key(), member_id)
            pipe.execute()

    def all(self) -> list[Member]:
        """All members with a valid lease, by address, then by time of joining.

        A record that cannot be read is left out, with a warning.
        """
        ids: list[bytes] = self.client.zrange(keys.members_key(), 0, -1)  # type: ignore[assignment]
        if not ids:
            return []
        members = self.of(member_id.decode(errors="replace") for member_id in ids).values()
        return sorted(members, key=lambda m: (not m.address, m.address, m.joined, m.id))

    def of(self, ids: Iterable[str]) -> dict[str, Member]:
        """The members of these ids that have a valid lease."""
        names = [member_id for member_id in ids if member_id]
        if not names:
            return {}
        texts: Iterable[bytes | None] = self.client.mget(  # type: ignore[assignment]
            [keys.member_key(name) for name in names]
        )
        found = ((name, text) for name, text in zip(names, texts, strict=True) if text is not None)
        return {name: member for name, text in found if (member := _read(name, text))}

    def broken(self, members: Iterable[Member]) -> set[str]:
        """Ids of members whose connection to Redis is closed; none if Redis does not tell.

        A live member reconnects within a moment: only a member that stays broken is dead.
        """
        asked = [member for member in members if member.connection]
        if not asked or not self.sees_connections:
            return set()
        try:
            listed: Any = self.client.client_list(
                client_id=[str(member.connection) for member in asked]
            )
        except redis.ResponseError:  # forbidden by a managed Redis: leases expire, only later
            self.sees_connections = False
            return set()
        connected = {int(entry["id"]) for entry in listed}
        return {member.id for member in asked if member.connection not in connected}


def _read(member_id: str, text: bytes) -> Member | None:
    """The member of that id; None, with a warning, if the record is not this member's."""
    try:
        member = Member.from_json(text)
    except WireError as error:
        _warn(f"member {member_id!r:.40}: {error}")
        return None
    if member.id != member_id:
        _warn(f"member {member_id!r:.40}: the record is of {member.id!r:.40}")
        return None
    return member


@lru_cache(maxsize=100)
def _warn(message: str) -> None:
    """Once for each message: members are read every second."""
    logger.warning("%s; it is left out", message)
