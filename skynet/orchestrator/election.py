"""Which orchestrator leads, as the lease's thread decides it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable

import redis

from skynet.settings import settings
from skynet.store.leader import Held, Leadership
from skynet.store.members import Member, Members
from skynet.wire import keys
from skynet.wire.protocol import PROTOCOL

logger = logging.getLogger(__name__)

STUCK_S = 30.0  # without a tick of the main thread: another orchestrator may lead


class Election:
    """Renews the leader's lease, or acquires it when it is free.

    epoch: the latest that this process knows; a new leader's epochs are higher.
    is_candidate: whether to acquire a free lease.
    ticked: monotonic time of the main thread's last tick.
    wiped: Redis restarted without its data while this process led.
    """

    def __init__(self, leadership: Leadership, epoch: Callable[[], int]) -> None:
        self.leadership = leadership
        self.epoch = epoch
        self.is_candidate = False
        self.ticked = time.monotonic()
        self.wiped = False
        self._num_broken = 0  # consecutive renewals that saw the leader's connection closed

    def renew(self, client: redis.Redis) -> None:
        """Called with every renewal of the process's lease, with the Redis client of its thread."""
        leadership = self.leadership
        members = Members(client, settings().lease_s)
        present = members.all()
        own, theirs = _num_workers(present, leadership.member)
        if leadership.leads:
            if time.monotonic() - self.ticked > STUCK_S:
                logger.error("no tick of the main thread for %g s: another may lead", STUCK_S)
                leadership.resign()
                return
            held = leadership.renew()
            if held is not Held.YES:
                self.wiped = self.wiped or held is Held.WIPED
                leadership.lose()
            elif theirs and not own:
                logger.warning("no worker speaks protocol %d any more: handing over", PROTOCOL)
                leadership.resign()
                return
        if not leadership.leads and self.is_candidate:
            self._depose_dead_leader(members, present)
            if theirs <= own:
                leadership.acquire(self.epoch())

    def _depose_dead_leader(self, members: Members, present: Iterable[Member]) -> None:
        """Free the lease of an orchestrator whose connection Redis has closed."""
        holder = self.leadership.holder()
        leader = holder.partition(":")[2]
        rivals = [member for member in present if member.id == leader] if leader else []
        self._num_broken = self._num_broken + 1 if members.broken(rivals) else 0
        if self._num_broken >= 2:
            logger.warning("orchestrator %s has lost its connection: it is deposed", leader)
            self.leadership.depose(holder)
            self._num_broken = 0


def _num_workers(present: Iterable[Member], orchestrator: str) -> tuple[int, int]:
    """Workers of this orchestrator's protocol, and the most that one of another could lead.

    While old and new processes run side by side, the version with more workers should lead.
    """
    staying = [member for member in present if not member.leaving]
    workers = Counter(m.protocol for m in staying if m.address != keys.ORCHESTRATOR_QUEUE)
    others = {
        member.protocol
        for member in staying
        if member.address == keys.ORCHESTRATOR_QUEUE and member.id != orchestrator
    }
    theirs = max((workers[protocol] for protocol in others - {PROTOCOL}), default=0)
    return workers[PROTOCOL], theirs
