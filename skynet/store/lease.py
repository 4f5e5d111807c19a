"""A process's lease, renewed by a thread of its own: whoever is busy must not look dead."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import psutil
import redis

from skynet.store.connection import connect
from skynet.store.members import Member, Members

logger = logging.getLogger(__name__)

RENEWALS = 6  # in the time of a lease


class Lease:
    """Keeps `member`'s lease until it is stopped.

    Fields of the member are changed with `update` only, so that nobody reads half of a change.
    beat: called with every renewal, in the lease's thread, with its Redis client.
    free_bytes: tells the memory that is free.
    """

    def __init__(
        self,
        member: Member,
        lease_s: float,
        beat: Callable[[redis.Redis], None] = lambda client: None,
        free_bytes: Callable[[], int] = lambda: int(psutil.virtual_memory().available),
    ) -> None:
        self.member = member
        self.lease_s = lease_s
        self.beat = beat
        self.free_bytes = free_bytes
        self.lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def update(self, *, quietly: bool = False, **fields: Any) -> None:
        """Change fields of the member; tell Redis at once, or `quietly` with the next renewal."""
        with self.lock:
            for name, value in fields.items():
                setattr(self.member, name, value)
        if not quietly:
            self._wake.set()

    def stop(self) -> None:
        """Give the lease back."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        try:
            with connect(timeout_s=2) as client:
                Members(client, self.lease_s).leave(self.member.id)
        except redis.RedisError:
            logger.warning("could not give the lease back: it runs out by itself")

    def _keep(self) -> None:
        client = connect(timeout_s=max(1.0, self.lease_s / 2), single_connection=True)
        members = Members(client, self.lease_s)
        process = psutil.Process()
        away = False
        while not self._stopping:
            self._wake.clear()
            self.update(
                quietly=True,
                resident_bytes=process.memory_info().rss,
                free_bytes=self.free_bytes(),
            )
            try:
                with self.lock:
                    members.renew(self.member)
                self.beat(client)
                if away:
                    logger.info("Redis is back")
                away = False
            except redis.RedisError as error:
                if not away:
                    logger.warning("Redis: %s; trying until it is back", error)
                away = True
            self._wake.wait(0.1 if away else self.lease_s / RENEWALS)
