"""A lean model: Redis drops the tiles that every placed worker has on its machine's disk.

The stager that stays drops them, and stages them again when a worker misses one. A key that lives
for as long as the stager looks says that absent tiles are no damage.
"""

from __future__ import annotations

import logging

import redis

from skynet.settings import settings
from skynet.store.bad_tiles import reported_tiles
from skynet.store.manifest import Manifest
from skynet.store.members import READY, Members
from skynet.store.plans import Plans, plan_of
from skynet.store.staging import KEYS_AT_ONCE
from skynet.store.staging_lock import StagingLock
from skynet.store.weights import WeightStore
from skynet.wire import keys

logger = logging.getLogger(__name__)

LEAN_MS = 10_000


def announce(client: redis.Redis, digest: str) -> None:
    """Say for ten seconds that this model is lean."""
    client.set(keys.lean_key(digest), 1, px=LEAN_MS)


def drop_kept_tiles(client: redis.Redis, manifest: Manifest, lock_s: float) -> int:
    """Delete the model's tiles if no worker needs them; returns their number."""
    if not _all_keep_theirs(client, manifest.digest):
        return 0
    absent = set(WeightStore(client).missing_tiles(manifest))
    present = [name for name in manifest.tile_names() if name not in absent]
    lock = StagingLock(client, manifest.digest, lock_s)
    if not present or not lock.acquire():
        return 0
    try:
        redis_keys = [name.key(manifest.digest).encode() for name in present]
        for at in range(0, len(redis_keys), KEYS_AT_ONCE):
            lock.delete(redis_keys[at : at + KEYS_AT_ONCE])
    finally:
        lock.release()
    return len(present)


def _all_keep_theirs(client: redis.Redis, digest: str) -> bool:
    """Whether the plan in force is this model's, and every worker in it has its tiles on disk."""
    in_force, following = Plans(client).texts()
    plan = plan_of(in_force)
    if plan is None or plan.model != digest or following is not None:
        return False
    members = {member.id: member for member in Members(client, settings().lease_s).all()}
    placed = [members.get(member_id) for member_id in plan.workers]
    return (
        bool(placed)
        and not reported_tiles(client, digest)
        and all(
            member is not None
            and member.state == READY
            and member.epoch == plan.epoch
            and member.keeps_tiles
            for member in placed
        )
    )
