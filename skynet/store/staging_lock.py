"""The lock on writing one model's tiles: one stager at a time.

A Redis lock with a time to live. A stager that is suspended for longer loses it, and must not write
again, since another one may cut tiles differently. So every write is a transaction that fails
unless the writer holds the lock (Kleppmann, "How to do distributed locking", 2016).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import redis

from skynet.errors import SkynetError
from skynet.wire import keys

logger = logging.getLogger(__name__)

LOCK_S = 30.0  # a killed stager's lock expires after this
POLL_S = 0.2  # between tries to take the lock

# KEYS: lock, manifest. ARGV: token, manifest. Replies 0 if the lock is another's.
SET_MANIFEST = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""

# KEYS: lock. ARGV: token, time to live in ms. Replies 0 if the lock is another's.
RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS: lock. ARGV: token.
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end"


class StagingLock:
    """One process's lock on the model of this digest. Not thread-safe."""

    def __init__(self, client: redis.Redis, digest: str, lock_s: float = LOCK_S) -> None:
        self.client = client
        self.digest = digest
        self.lock_ms = int(lock_s * 1000)
        self.key = keys.staging_lock_key(digest)
        self.token = secrets.token_hex(16).encode()
        self._renew_at = 0.0
        self._renew = client.register_script(RENEW)
        self._release = client.register_script(RELEASE)
        self._set_manifest = client.register_script(SET_MANIFEST)

    @contextmanager
    def held(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Wait for the lock, hold it, release it at the end.

        waiting: called before every retry; may raise to give up.
        """
        while not self.acquire():
            if waiting:
                waiting()
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> bool:
        """Take the lock if it is free."""
        taken = self.client.set(self.key, self.token, nx=True, px=self.lock_ms)
        self._schedule()
        return bool(taken)

    def keep(self) -> None:
        """Renew the lock once a third of its time has passed; for long work between writes.

        Raises:
            SkynetError: the lock was lost.
        """
        if time.monotonic() < self._renew_at:
            return
        if not self._renew(keys=[self.key], args=[self.token, self.lock_ms]):
            self._lost()
        self._schedule()

    def release(self) -> None:
        """Release the lock, if it is still held."""
        try:
            self._release(keys=[self.key], args=[self.token])
        except redis.RedisError:
            logger.warning("could not release %s: it will expire", self.key)

    def write(self, values: Mapping[str, bytes]) -> None:
        """Set all these keys, or none.

        Raises:
            SkynetError: the lock was lost; nothing was written.
        """

        def put(pipeline: redis.client.Pipeline) -> None:
            for key, value in values.items():
                pipeline.set(key, value)

        self._transact(put)

    def delete(self, redis_keys: Iterable[bytes]) -> None:
        """Delete all these keys, or none; raises as `write`."""
        self._transact(lambda pipeline: pipeline.delete(*redis_keys))

    def write_manifest(self, text: str) -> None:
        """Declare the staging complete.

        Raises:
            SkynetError: the lock was lost; the manifest was not written.
        """
        redis_keys = [self.key, keys.manifest_key(self.digest)]
        if not self._set_manifest(keys=redis_keys, args=[self.token, text]):
            self._lost()

    def _transact(self, commands: Callable[[redis.client.Pipeline], Any]) -> None:
        with self.client.pipeline(transaction=True) as pipeline:
            try:
                pipeline.watch(self.key)
                if pipeline.get(self.key) != self.token:
                    self._lost()
                pipeline.multi()
                pipeline.pexpire(self.key, self.lock_ms)
                commands(pipeline)
                pipeline.execute()
            except redis.WatchError as error:
                if isinstance(error.__context__, redis.ConnectionError):
                    raise error.__context__ from None  # redis-py: a lost connection watches nothing
                self._lost()
        self._schedule()

    def _schedule(self) -> None:
        self._renew_at = time.monotonic() + self.lock_ms / 3000

    def _lost(self) -> NoReturn:
        raise SkynetError(
            f"the staging of {self.digest[:12]} was stopped for more than "
            f"{self.lock_ms / 1000:g} s, or Redis lost its data, and its lock is gone: it stopped "
            "writing. Stage again: tiles staged by another process meanwhile are used"
        ) from None
