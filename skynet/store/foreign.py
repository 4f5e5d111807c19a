"""Keys of SkyNet that another client has given another type: they are deleted, and made again.

Left alone, each command on such a key would fail for ever.
"""

from __future__ import annotations

import logging

import redis

from skynet.wire import keys

logger = logging.getLogger(__name__)

TYPES = {
    keys.PLAN_KEY: b"string",
    keys.NEXT_PLAN_KEY: b"string",
    keys.TARGET_KEY: b"string",
    keys.REVISION_KEY: b"string",
    keys.REBALANCE_KEY: b"string",
    keys.EPOCH_KEY: b"string",
    keys.TERM_KEY: b"string",
    keys.LEADER_KEY: b"string",
    keys.ENGINE_KEY: b"string",
    keys.ARRIVALS_KEY: b"string",
    keys.EVENTS_KEY: b"stream",
    keys.MEMBERS_KEY: b"zset",
    keys.OPEN_REQUESTS_KEY: b"zset",
    keys.ORCHESTRATOR_QUEUE: b"list",
}


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis refused a command because of a key's type."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


def delete_foreign(client: redis.Redis, types: dict[str, bytes] | None = None) -> list[str]:
    """Delete each of SkyNet's fixed keys, or of `types`, that has another type; returns them."""
    foreign = []
    for key, kind in (TYPES if types is None else types).items():
        found: bytes = client.type(key)  # type: ignore[assignment]
        if found not in (kind, b"none"):
            logger.error("%s is a %s, not a %s: deleted", key, found.decode(), kind.decode())
            client.delete(key)
            foreign.append(key)
    return foreign
