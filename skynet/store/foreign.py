"""Keys of SkyNet that another client has given another type: they are deleted, and made again.

Left alone, each command on such a key would fail for ever.
"""

from __future__ import annotations

import logging

import redis

from skynet.wire import keys

logger = logging.getLogger(__name__)


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis refused a command because of a key's type."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)


def delete_foreign(client: redis.Redis, types: dict[str, bytes] | None = None) -> list[str]:
    """Delete each of SkyNet's fixed keys, or of `types`, that has another type; returns them."""
    foreign = []
    for key, kind in (_types() if types is None else types).items():
        found: bytes = client.type(key)  # type: ignore[assignment]
        if found not in (kind, b"none"):
            logger.error("%s is a %s, not a %s: deleted", key, found.decode(), kind.decode())
            client.delete(key)
            foreign.append(key)
    return foreign


def _types() -> dict[str, bytes]:
    """The type of each fixed key."""
    return {
        keys.plan_key(): b"string",
        keys.next_plan_key(): b"string",
        keys.target_key(): b"string",
        keys.revision_key(): b"string",
        keys.rebalance_key(): b"string",
        keys.epoch_key(): b"string",
        keys.term_key(): b"string",
        keys.leader_key(): b"string",
        keys.engine_key(): b"string",
        keys.metrics_key(): b"string",
        keys.arrivals_key(): b"string",
        keys.events_key(): b"stream",
        keys.members_key(): b"zset",
        keys.open_requests_key(): b"zset",
        keys.queue_key(keys.ORCHESTRATOR_QUEUE): b"list",
    }
