"""The live members as the leading orchestrator sees them: joins, losses, failures.

A member is dead when its lease has expired, or when Redis has closed its connection and it has
opened no other within `BROKEN_S`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from skynet.planning.cost import (
    DEFAULT_FEW_ROWS,
    DEFAULT_MANY_ROWS,
    WORKER_BYTES,
    Candidate,
)
from skynet.planning.plan import Plan
from skynet.store.members import FAILED, READY, Member, Members
from skynet.wire import keys
from skynet.wire.protocol import PROTOCOL

BROKEN_S = 0.625  # a live process has opened a new connection by then
FAILED_S, COOL_S = 10.0, 60.0  # a member that fails to load for so long is left out for so long
STARTING_S = 15.0  # for a new member to measure its speed; plans do not wait longer for it


class Membership:
    """Shard workers, from one look to the next.

    tell: called with ("joined", "lost", "left" or "leaving", text) for every change.
    changed: time of the last join or loss.
    reconnected: a member has opened a new connection; the caller resets it.
    silence_s: of the last lost member, from its last sign of life to the notice.
    """

    def __init__(
        self,
        members: Members,
        tell: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = members
        self.tell = tell
        self.clock = clock
        self.live: dict[str, Member] = {}
        self.changed = clock()
        self.reconnected = False
        self.silence_s = 0.0
        self._renewed: dict[str, tuple[float, float]] = {}  # id -> its last renewal, seen at
        self._broken: dict[str, tuple[int, float]] = {}  # id -> connection, closed since
        self._failing: dict[str, tuple[float, float]] = {}  # id -> failing since, last failure

    def look(self) -> None:
        """Read the leases again, and tell the changes."""
        workers = [m for m in self.members.all() if m.address != keys.ORCHESTRATOR_QUEUE]
        dead = self._dead(workers) | self._failing_for_long(workers)
        live = {member.id: member for member in workers if member.id not in dead}
        for member in live.values():
            before = self.live.get(member.id)
            if before is None:
                text = f"{describe(member)}, pid {member.pid} on {member.host}"
                self.tell("joined", text + _misfit(member))
            elif before.connection != member.connection:
                self.reconnected = True
            if member.leaving and not (before is not None and before.leaving):
                self.tell("leaving", describe(member))
        for member in self.live.values():
            if member.id not in live:
                self.silence_s = self._silence_s(member.id)
                self.tell("left" if member.leaving else "lost", describe(member))
        if live.keys() != self.live.keys():
            self.changed = self.clock()
        self.live = live
        self._note_renewals()

    def _note_renewals(self) -> None:
        now = self.clock()
        known, self._renewed = self._renewed, {}
        for member in self.live.values():
            renewed, at = known.get(member.id, (-1.0, now))
            self._renewed[member.id] = (member.renewed, at if renewed == member.renewed else now)

    def _silence_s(self, member_id: str) -> float:
        """Since its connection was closed, or else since its last renewal."""
        now = self.clock()
        since = self._broken.get(member_id, self._renewed.get(member_id, (0, now)))[1]
        return now - since

    def _dead(self, workers: list[Member]) -> set[str]:
        now = self.clock()
        broken = self.members.broken(workers)
        connections = {member.id: member.connection for member in workers}
        self._broken = {
            member_id: self._broken[member_id]
            if self._broken.get(member_id, (0, 0))[0] == connections[member_id]
            else (connections[member_id], now)
            for member_id in broken
        }
        return {i for i, (_, since) in self._broken.items() if now - since >= BROKEN_S}

    def _failing_for_long(self, workers: list[Member]) -> set[str]:
        """Members that keep failing to load their slice: another one may take their place."""
        now = self.clock()
        for member in workers:
            since, last = self._failing.get(member.id, (now, now))
            if member.state == FAILED:
                self._failing[member.id] = (now if now - last > COOL_S else since, now)
        ids = {member.id for member in workers}
        self._failing = {
            i: (since, last)
            for i, (since, last) in self._failing.items()
            if i in ids and now - last < COOL_S
        }
        return {i for i, (since, last) in self._failing.items() if last - since >= FAILED_S}

    @property
    def last_renewal(self) -> float:
        """The latest renewal of a lease, by Redis's clock."""
        return max((member.renewed for member in self.live.values()), default=0.0)

    @property
    def last_epoch(self) -> int:
        """The latest epoch that a member has seen."""
        return max((max(m.epoch, m.prepared) for m in self.live.values()), default=0)

    @property
    def settled_for_s(self) -> float:
        """Seconds since the last join or loss."""
        return self.clock() - self.changed

    @property
    def coming(self) -> bool:
        """Whether a member is starting."""
        now = self.last_renewal
        return any(
            not member.speed and not member.leaving and now - member.joined < STARTING_S
            for member in self.usable()
        )

    def usable(self) -> list[Member]:
        """The members of this orchestrator's protocol: a plan never has others."""
        return [member for member in self.live.values() if member.protocol == PROTOCOL]

    def candidates(self) -> list[Candidate]:
        """The members that a plan may use."""
        free: dict[str, int] = {}
        held: Counter[str] = Counter()
        for member in self.live.values():
            other_free = free.get(member.host, member.free_bytes)
            free[member.host] = min(other_free, member.free_bytes)
            held[member.host] += member.weight_bytes + WORKER_BYTES
        return [
            candidate_of(member, free[member.host] + held[member.host])
            for member in self.usable()
            if member.speed >= 1  # else it is starting
        ]

    def not_ready(self, plan: Plan) -> list[str]:
        """Shards that a plan in force waits for, with reasons; none: it can run."""
        waits = []
        for worker, address in plan.placed().items():
            member, name = self.live.get(worker), _name(address)
            if member is None:
                waits.append(f"{name} (lost)")
            elif member.epoch != plan.epoch or member.state != READY:
                state = member.state
                if state == "loading":
                    share = member.loaded_bytes / member.weight_bytes if member.weight_bytes else 0
                    state += f" {share:.0%}"
                waits.append(f"{name} ({member.problem or state})")
        names_of = {_name(address): worker for worker, address in plan.placed().items()}
        waits += [
            f"{member.queue} (still consumed by {member.id})"
            for member in self.live.values()
            if names_of.get(member.queue, member.id) != member.id
        ]
        return waits + [
            _name(address)
            for address, worker in zip(plan.addresses(), plan.workers, strict=False)
            if not worker
        ]

    def not_prepared(self, plan: Plan) -> list[str]:
        """Shards that have not loaded the tiles of a plan in preparation."""
        waits = []
        for worker, address in plan.placed().items():
            member = self.live.get(worker)
            if member is None or member.prepared != plan.epoch:
                problem = f": {member.problem}" if member is not None and member.problem else ""
                waits.append(_name(address) + problem)
        return waits

    def load_rate(self) -> float:
        """Bytes per second of the fastest loader so far; 0: unknown.

        The slower ones shared disk, cores and network with others.
        """
        rates = [
            (member.weight_bytes - member.kept_bytes) / member.load_s
            for member in self.live.values()
            if member.load_s > 0.1 and member.weight_bytes > member.kept_bytes
        ]
        return max(rates, default=0.0)


def candidate_of(member: Member, free_bytes: int) -> Candidate:
    """A member, as a candidate for an address; free_bytes: of its host, for all its workers."""
    return Candidate(
        id=member.id,
        host=member.host,
        pinned=member.pinned,
        cores=member.cores,
        threads=member.asked_threads,
        speed=member.speed,
        few_rows=member.few_rows_speed or DEFAULT_FEW_ROWS,
        many_rows=member.many_rows_speed or DEFAULT_MANY_ROWS,
        round_trip_s=member.round_trip_s,
        free_bytes=free_bytes,
        leaving=member.leaving,
        joined=member.joined,
        device=member.device,
        trips=member.trips,
    )


def describe(member: Member) -> str:
    """The name of a member in logs and status."""
    return f"{member.address or member.pinned or 'spare'} ({member.id})"


def _misfit(member: Member) -> str:
    """Why a member gets no place, or ""."""
    if member.protocol == PROTOCOL:
        return ""
    return f"; it speaks protocol {member.protocol}, this orchestrator {PROTOCOL}: it gets no place"


def _name(address: tuple[int, int]) -> str:
    return str(keys.Address(*address))
