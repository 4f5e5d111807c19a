"""A process's lease, renewed by a separate thread: a busy process must not look dead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import redis

from skynet.store.connection import connect
from skynet.store.foreign import delete_foreign, is_wrong_type
from skynet.store.members import Member, Members

logger = logging.getLogger(__name__)

RENEWALS = 6  # renewals within the lease's time
PING_S = 0.2


class Lease:
    """Renews `member`'s lease until it is stopped.

    Fields of the member are changed with `update` only, so that a renewal never writes half a
    change.
    beat: called after every renewal, in the lease's thread, with its Redis client.
    free_bytes: returns the free memory.
    num_losses: how often Redis was away, and is back.
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
        self.num_losses = 0
        self.lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def update(self, *, quietly: bool = False, **fields: Any) -> None:
        """Change fields of the member; renew at once, or `quietly` at the usual time."""
        with self.lock:
            for name, value in fields.items():
                setattr(self.member, name, value)
        if not quietly:
            self._wake.set()

    def stop(self) -> None:
        """End the lease."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)
        try:
            with connect(timeout_s=2) as client:
                Members(client, self.lease_s).leave(self.member.id)
        except redis.RedisError:
            logger.warning("could not end the lease: it will expire")

    def _keep(self) -> None:
        client: redis.Redis | None = None
        renewed, problem = 0.0, ""
        while not self._stopping:
            asked, now = self._wake.is_set(), time.monotonic()
            self._wake.clear()
            try:
                if client is None:
                    client = connect(timeout_s=max(1.0, self.lease_s / 2), single_connection=True)
                if asked or problem or now - renewed >= self.lease_s / RENEWALS:
                    self._renew(client)
                    renewed = now
                else:
                    client.ping()  # reopens a lost connection at once
                if problem:
                    logger.info("Redis is back")
                    self.num_losses += 1
                problem = ""
            except Exception as error:  # this thread must outlive every error
                if client is not None and is_wrong_type(error):
                    self._delete_foreign(client)
                kind = "Redis" if isinstance(error, redis.RedisError) else type(error).__name__
                if kind != problem:
                    logger.warning("lease: %s: %s; trying until it works", kind, error)
                problem = kind
            self._wake.wait(0.1 if problem else min(PING_S, self.lease_s / RENEWALS))

    def _delete_foreign(self, client: redis.Redis) -> None:
        try:
            delete_foreign(client)
        except redis.RedisError as error:
            logger.warning("lease: Redis: %s", error)

    def _renew(self, client: redis.Redis) -> None:
        resident = psutil.Process().memory_info().rss
        self.update(quietly=True, resident_bytes=resident, free_bytes=self.free_bytes())
        with self.lock:
            Members(client, self.lease_s).renew(self.member)
        self.beat(client)
